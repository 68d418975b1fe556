/* One of the many libraries of many.c. */
#include <stdlib.h>
#include <string.h>

char *small_copy(const char *text)
{
    char *copy = malloc(strlen(text) + 1);
    return copy ? strcpy(copy, text) : NULL;
}
