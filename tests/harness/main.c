/* main.c -- the data plane under a sanitizer: harness DIRECTORY SEED OPERATIONS DRIVER... */
#include <stdio.h>
#include <stdlib.h>

#include "contract.h"
#include "exercise.h"
#include "kernel.h"
#include "refusals.h"

int main(int argc, char **argv)
{
    if (argc < 5) {
        fprintf(stderr, "usage: %s DIRECTORY SEED OPERATIONS DRIVER...\n", argv[0]);
        return 2;
    }
    for (int i = 4; i < argc; i++) {
        uint64_t seed = strtoull(argv[2], NULL, 10);
        unsigned operations = (unsigned)strtoul(argv[3], NULL, 10);
        char why[512] = "";

        if (aiofs_driver_probe(argv[i], why, sizeof why) < 0) {
            printf("%s: left out: %s\n", argv[i], why);
            continue;
        }
        fprintf(stderr, "%s, seed %lu: ", argv[i], (unsigned long)seed); /* the line that a failure ends */
        random_seed(seed);
        refusals_disturb(37);
        exercise_plane(argv[1], argv[i], operations);
        refusals_disturb(0);
        exercise_refusals(argv[1], argv[i]);
        exercise_queue(argv[1], argv[i], operations / 4);
        exercise_measure(argv[1], argv[i]);
        fprintf(stderr, "%u operations, every byte as it should be\n", operations);
    }
    return 0;
}
