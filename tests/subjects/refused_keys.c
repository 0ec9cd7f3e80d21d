/* A key in a session keyring of its own (keyrings(7)). */
#include "subject.h"
#include <linux/keyctl.h>

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    if (syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, "refused_keys") < 0) skip("keyctl: %s", strerror(errno));
    long key = must(syscall(SYS_add_key, "user", "secret", "hidden", 6, KEY_SPEC_SESSION_KEYRING));
    ready();
    wait_go();
    if (sabotage()) must(syscall(SYS_keyctl, KEYCTL_UNLINK, key, KEY_SPEC_SESSION_KEYRING));
    char value[16] = "";
    check_equal(syscall(SYS_keyctl, KEYCTL_SEARCH, KEY_SPEC_SESSION_KEYRING, "user", "secret", 0), key);
    check_equal(syscall(SYS_keyctl, KEYCTL_READ, key, value, sizeof value), 6);
    return finish();
}
