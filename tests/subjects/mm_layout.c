/* What /proc shows of a program's layout: command line (rewritten in place, as servers do), environment, auxiliary
 * vector, executable, and the addresses in stat. */
#include "subject.h"

extern char **environ;

static const char *const FILES[] = {"/proc/self/cmdline", "/proc/self/environ", "/proc/self/auxv"};

/* Fields 26-28 (code, stack start) and 45-51 (data, break, arguments, environment) of /proc/self/stat. */
static void addresses(unsigned long values[10]) {
    char text[4096];
    slurp("/proc/self/stat", text, sizeof text);
    char *at = strrchr(text, ')') + 2;
    int field = 3, count = 0;
    for (char *save = NULL, *word = strtok_r(at, " ", &save); word; word = strtok_r(NULL, " ", &save), field++)
        if ((field >= 26 && field <= 28) || (field >= 45 && field <= 51)) values[count++] = strtoul(word, NULL, 10);
}

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    strncpy(argv[0], "renamed-by-itself", strlen(argv[0]));
    static char before[COUNT(FILES)][1 << 16], after[1 << 16];
    size_t lengths[COUNT(FILES)];
    char exe[4096] = "", exe_now[4096] = "";
    unsigned long values[10] = {0}, values_now[10] = {0};
    for (size_t i = 0; i < COUNT(FILES); i++) lengths[i] = slurp(FILES[i], before[i], sizeof before[i]);
    must(readlink("/proc/self/exe", exe, sizeof exe - 1));
    addresses(values);
    ready();
    wait_go();

    if (sabotage()) argv[0][0]++;
    for (size_t i = 0; i < COUNT(FILES); i++) {
        size_t length = slurp(FILES[i], after, sizeof after);
        check(length == lengths[i] && memcmp(before[i], after, length) == 0, "%s differs (%zu bytes, had %zu)", FILES[i],
              length, lengths[i]);
    }
    must(readlink("/proc/self/exe", exe_now, sizeof exe_now - 1));
    check(strcmp(exe, exe_now) == 0, "the executable was %s and is %s", exe, exe_now);
    addresses(values_now);
    for (size_t i = 0; i < COUNT(values); i++)
        check(values[i] == values_now[i], "address %zu was %lx and is %lx", i, values[i], values_now[i]);
    check(environ[0] == NULL || strchr(environ[0], '=') != NULL, "the environment is no longer readable");
    return finish();
}
