/* Names of processes and threads, with any bytes in them. */
#include "subject.h"
#include <pthread.h>
#include <sys/prctl.h>

static const char *const names[] = {"", "a) (b", "fifteen-letters", "\x01\xff\n tab\t", "x"};
static volatile int named;

static void *run(void *argument) {
    const char *name = argument;
    char found[16] = "?";
    must(prctl(PR_SET_NAME, name));
    __atomic_add_fetch(&named, 1, __ATOMIC_SEQ_CST);
    wait_go();
    must(prctl(PR_GET_NAME, found));
    check(strcmp(found, name) == 0, "a thread called \"%s\" is called \"%s\"", name, found);
    return NULL;
}

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    pthread_t threads[COUNT(names)];
    for (size_t i = 0; i < COUNT(names); i++) must(-pthread_create(&threads[i], NULL, run, (void *)names[i]));
    while (named < (int)COUNT(names)) sleep_ms(1);
    must(prctl(PR_SET_NAME, "main (renamed)"));
    ready();
    wait_go();
    if (sabotage()) must(prctl(PR_SET_NAME, "again"));
    char found[16] = "?";
    must(prctl(PR_GET_NAME, found));
    check(strcmp(found, "main (renamed)") == 0, "main is called %s", found);
    for (size_t i = 0; i < COUNT(names); i++) pthread_join(threads[i], NULL);
    return finish();
}
