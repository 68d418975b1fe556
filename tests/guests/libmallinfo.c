// A function for MariaDB which says how many bytes glibc has given and not taken back, by glibc's own count.
// The types are those of its plugins (mysql.h), of which no field is used.

#include <malloc.h>
#include <stdbool.h>

bool taken_init(void *call, void *arguments, char *message);
long long taken(void *call, void *arguments, char *is_null, char *error);

bool taken_init(void *call, void *arguments, char *message) {
    (void)call, (void)arguments, (void)message;
    return false;
}

long long taken(void *call, void *arguments, char *is_null, char *error) {
    (void)call, (void)arguments, (void)is_null, (void)error;
    struct mallinfo2 info = mallinfo2();
    return (long long)(info.uordblks + info.hblkhd);
}
