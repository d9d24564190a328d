/* programs.c: tests and examples in one program.
 *
 *   ./c_programs NAME ARGUMENTS
 *
 * programs.h, which the build writes, has PROGRAM(name) for each: its main is name_main here.
 */
#include <stdio.h>
#include <string.h>

#define PROGRAM(name) int name##_main(int argc, char **argv);
#include "programs.h"
#undef PROGRAM

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
} programs[] = {
#define PROGRAM(name) {#name, name##_main},
#include "programs.h"
#undef PROGRAM
};

int main(int argc, char **argv)
{
    for (size_t i = 0; i < sizeof programs / sizeof programs[0]; i++)
        if (argc > 1 && strcmp(argv[1], programs[i].name) == 0)
            return programs[i].run(argc - 1, argv + 1);
    fprintf(stderr, "usage: %s NAME ARGUMENTS, where NAME is one of\n", argv[0]);
    for (size_t i = 0; i < sizeof programs / sizeof programs[0]; i++)
        fprintf(stderr, "    %s\n", programs[i].name);
    return 2;
}
