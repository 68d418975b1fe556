/* The same without a loader, and with an allocator of its own. */
#include "replaces.c"
