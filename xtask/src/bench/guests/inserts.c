/* SQLite at work: an operation inserts a row, a hundred in each transaction, into a table in memory. */
#include <sqlite3.h>

#include "at_command.h"

enum { ROWS = 100, MOST_ROWS = 50000 };

static sqlite3 *database;
static sqlite3_stmt *insert;
static long rows;

static void must(int code)
{
    if (code != SQLITE_OK && code != SQLITE_DONE) {
        fprintf(stderr, "sqlite: %s\n", sqlite3_errmsg(database));
        exit(1);
    }
}

static void run(const char *statement)
{
    must(sqlite3_exec(database, statement, NULL, NULL, NULL));
}

static void prepare(void)
{
    must(sqlite3_open(":memory:", &database));
    run("create table person (id integer primary key, name text, note text)");
    run("create index by_name on person (name)");
    must(sqlite3_prepare_v2(database, "insert into person (name, note) values (?, ?)", -1, &insert, NULL));
}

static long operate(void)
{
    char name[32];
    if (rows >= MOST_ROWS) {
        run("delete from person");
        rows = 0;
    }
    run("begin");
    for (int index = 0; index < ROWS; index++) {
        snprintf(name, sizeof name, "name %ld", (rows + index) * 7919 % 100003);
        must(sqlite3_bind_text(insert, 1, name, -1, SQLITE_TRANSIENT));
        must(sqlite3_bind_text(insert, 2, "a note of some length, as people write them", -1, SQLITE_TRANSIENT));
        must(sqlite3_step(insert));
        must(sqlite3_reset(insert));
    }
    run("commit");
    rows += ROWS;
    return ROWS;
}
