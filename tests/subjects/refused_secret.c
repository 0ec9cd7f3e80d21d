/* Memory that the kernel itself cannot read (memfd_secret(2)). */
#include "subject.h"
#include <sys/mman.h>

#ifndef SYS_memfd_secret
#define SYS_memfd_secret 447
#endif

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    int fd = (int)syscall(SYS_memfd_secret, 0);
    if (fd < 0) skip("memfd_secret: %s", strerror(errno));
    must(ftruncate(fd, 4096));
    char *memory = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED) skip("mmap: %s", strerror(errno));
    strcpy(memory, "secret");
    ready();
    wait_go();
    if (sabotage()) memory[0] = 0;
    check(strcmp(memory, "secret") == 0, "the secret is \"%s\"", memory);
    return finish();
}
