/* drivers.c -- the table of drivers, and what api.h shows of it to Python.
 *
 * Threads: any; everything here is const. A new driver is one line in the table.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "contract.h"
#include "driver.h"

const struct driver *const aiofs_driver_table[] = {
    &driver_io_uring,
    &driver_linux,
    &driver_threads,
    &driver_posix,
    &driver_sync,
    &driver_fault_io_uring,
    &driver_fault_linux,
    &driver_fault_threads,
    &driver_fault_posix,
    &driver_fault_sync,
};
const int aiofs_driver_table_count = sizeof aiofs_driver_table / sizeof *aiofs_driver_table;
const int aiofs_driver_listed_count = sizeof aiofs_driver_table / sizeof *aiofs_driver_table / 2;

const struct driver *driver_by_name(const char *name)
{
    for (int i = 0; i < aiofs_driver_table_count; i++)
        if (strcmp(aiofs_driver_table[i]->name, name) == 0)
            return aiofs_driver_table[i];
    return NULL;
}

static const struct driver *driver_at(int32_t index)
{
    return index >= 0 && index < aiofs_driver_listed_count ? aiofs_driver_table[index] : NULL;
}

int32_t aiofs_driver_count(void)
{
    return aiofs_driver_listed_count;
}

int32_t aiofs_driver_index(const char *name)
{
    for (int i = 0; i < aiofs_driver_table_count; i++)
        if (strcmp(aiofs_driver_table[i]->name, name) == 0)
            return i;
    return -ENOENT;
}

const char *aiofs_driver_name(int32_t index)
{
    const struct driver *driver = driver_at(index);
    return driver == NULL ? NULL : driver->name;
}

const char *aiofs_driver_description(int32_t index)
{
    const struct driver *driver = driver_at(index);
    return driver == NULL ? NULL : driver->description;
}

int32_t aiofs_driver_probe(const char *name, char *why, uint32_t size)
{
    const struct driver *driver = driver_by_name(name);
    if (driver != NULL)
        return driver->probe(why, size);
    snprintf(why, size, "there is no driver named %s", name);
    return -ENOENT;
}
