/* Working directories and open directories that were deleted. */
#include "subject.h"

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    char base[4096];
    must(getcwd(base, sizeof base) ? 0 : -1);
    must(mkdir("outer", 0777)), must(mkdir("outer/inner", 0777)), must(mkdir("held", 0777)), must(mkdir("again", 0777));
    int held = must(open("held", O_RDONLY | O_DIRECTORY | O_CLOEXEC)), path = must(open("again", O_PATH | O_DIRECTORY));
    int home = must(open(".", O_RDONLY | O_DIRECTORY));
    pid_t child = must(fork());
    if (child == 0) {
        must(chdir("outer/inner"));
        mark("../../child");
        while (faccessat(home, "go", F_OK, 0) != 0) sleep_ms(5);
        char name[4096];
        check(getcwd(name, sizeof name) == NULL && errno == ENOENT, "the working directory has a path again: %s", name);
        check(open("new", O_WRONLY | O_CREAT, 0666) == -1 && errno == ENOENT, "a file can be made in it");
        finish_child();
    }
    await_mark("child");
    must(rmdir("outer/inner")), must(rmdir("outer")), must(rmdir("held"));
    must(rmdir("again")), must(mkdir("again", 0777)); /* another one has the name */
    ready();
    wait_go();

    if (sabotage()) must(dup2(home, held));
    struct stat stat;
    must(fstat(held, &stat));
    check(S_ISDIR(stat.st_mode), "it is no directory");
    check_equal(stat.st_nlink, 0);
    check_equal(fcntl(held, F_GETFD), sabotage() ? 0 : FD_CLOEXEC);
    must(fstat(path, &stat));
    check(S_ISDIR(stat.st_mode) && stat.st_nlink == 0, "the one that is only named");
    check(openat(held, "new", O_WRONLY | O_CREAT, 0666) == -1 && errno == ENOENT, "a file can be made in it");
    check(!marked("outer") && !marked("held") && marked("again"), "directories have come back");
    reap(child);
    return finish();
}
