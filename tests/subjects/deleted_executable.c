/* A program whose binary has been deleted. It executes a copy of itself, and deletes that. */
#include "subject.h"

int main(int argc, char **argv) {
    if (argc == 2) {
        subject_begin(argc, argv);
        char self[4096] = "", *text = must(malloc(16 << 20));
        must(readlink("/proc/self/exe", self, sizeof self - 1));
        size_t length = slurp(self, text, 16 << 20);
        spew("copy", text, length);
        must(chmod("copy", 0755));
        must(execl("copy", "copy", ".", "copied", (char *)NULL));
    }
    subject_begin(argc, argv);
    must(unlink("copy"));
    ready();
    wait_go();
    if (sabotage()) check(0, "sabotaged");
    return finish();
}
