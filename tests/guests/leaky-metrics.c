/*
 * A service with a leak, for the demonstration: it fetches metrics from its targets for ever.
 *
 * Every tick it fetches a page of metrics from each target and parses it into series: a name, labels, a
 * value. The sum is what it is after, and the parsed series should go once it is known. But `parse_metrics`
 * also hangs each one into `metrics_cache`, which was meant to hold a series once and never looks whether it
 * has it: the parser's results are kept for ever.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* The demonstration's stacks should read as the source does. */
#define KEEP __attribute__((noinline, noclone))

enum { TARGETS = 4, SERIES = 100, BODY_BYTES = 16 << 10, LABELS = 3, TICKS_PER_SECOND = 20 };

struct label {
    char *name;
    char *value;
};

struct series {
    struct series *next;
    char *text;
    struct label labels[LABELS];
    size_t label_count;
    double value;
};

struct request {
    const char *target;
    char *headers;
    char *body;
};

static const char *const targets[TARGETS] = { "api-1:9100", "api-2:9100", "db-1:9187", "queue-1:9419" };

static struct series *metrics_cache;
static unsigned long cached, ticks;

/* The text of a page of metrics, as an exporter would answer. Returns its length. */
static KEEP size_t write_metrics(char *body, size_t capacity, const char *target)
{
    size_t length = 0;
    for (int index = 0; index < SERIES; index++)
        length += (size_t)snprintf(body + length, capacity - length,
                                   "http_request_duration_seconds_count"
                                   "{instance=\"%s\",method=\"GET\","
                                   "path=\"/v1/customers/invoices/items/%d\"} %lu\n",
                                   target, index, ticks * 7 + (unsigned long)index);
    return length;
}

/* Cuts `name="value"` off the text; returns what follows it, or null where there is no label. */
static KEEP char *parse_label(char *text, struct label *label)
{
    char *equals = strchr(text, '=');
    char *quote = equals ? strchr(equals + 2, '"') : NULL;
    if (!quote)
        return NULL;
    *equals = *quote = 0;
    label->name = text;
    label->value = equals + 2;
    return quote + 1;
}

/* Parses one line into a series, which keeps a copy of the text. Returns whether the line was one. */
static KEEP int parse_line(struct series *series, const char *line)
{
    size_t length = strlen(line);
    series->text = malloc(length + 1);
    if (!series->text)
        abort();
    memcpy(series->text, line, length + 1);
    char *rest = strchr(series->text, '{');
    while (rest && *rest != '}' && series->label_count < LABELS) {
        *rest = 0;
        rest = parse_label(rest + 1, &series->labels[series->label_count++]);
    }
    if (!rest)
        return 0;
    series->value = strtod(rest + 1, NULL);
    return 1;
}

/* The sum of the metrics on a page. */
static KEEP double parse_metrics(char *body)
{
    double sum = 0;
    char *place = NULL;
    for (char *line = strtok_r(body, "\n", &place); line; line = strtok_r(NULL, "\n", &place)) {
        struct series *series = calloc(1, sizeof *series);
        if (!series)
            abort();
        if (parse_line(series, line))
            sum += series->value;
        /* The leak. */
        series->next = metrics_cache;
        metrics_cache = series;
        cached++;
    }
    return sum;
}

static KEEP struct request *open_request(const char *target)
{
    struct request *request = malloc(sizeof *request);
    if (!request)
        abort();
    request->target = target;
    request->headers = malloc(512);
    request->body = malloc(BODY_BYTES);
    if (!request->headers || !request->body)
        abort();
    snprintf(request->headers, 512, "GET /metrics HTTP/1.1\r\nHost: %s\r\n\r\n", target);
    return request;
}

static KEEP void close_request(struct request *request)
{
    free(request->headers);
    free(request->body);
    free(request);
}

/* Fetches and parses one target's page. */
static KEEP double fetch_target(const char *target)
{
    struct request *request = open_request(target);
    write_metrics(request->body, BODY_BYTES, target);
    double sum = parse_metrics(request->body);
    close_request(request);
    return sum;
}

static KEEP void scrape_loop(void)
{
    const struct timespec pause = { .tv_nsec = 1000000000 / TICKS_PER_SECOND };
    for (;; ticks++) {
        double sum = 0;
        for (int index = 0; index < TARGETS; index++)
            sum += fetch_target(targets[index]);
        if (ticks % TICKS_PER_SECOND == 0)
            printf("fetching %d targets: %lu series so far, sum %.0f\n", TARGETS, cached, sum);
        nanosleep(&pause, NULL);
    }
}

int main(void)
{
    /* By the line even into a pipe, for whoever waits for the first fetch. */
    static char output[BUFSIZ];
    setvbuf(stdout, output, _IOLBF, sizeof output);
    printf("leaky-metrics: pid %d\n", (int)getpid());
    scrape_loop();
    return 0;
}
