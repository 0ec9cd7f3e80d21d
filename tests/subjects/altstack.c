/* Alternate signal stacks: one registered and not in use, and one on which a handler is running. */
#include "subject.h"
#include <pthread.h>

static char stacks[2][65536];
static volatile int inside, left;

static void on_own_stack(int signal) {
    char here;
    stack_t stack;
    (void)signal;
    must(sigaltstack(NULL, &stack));
    check(stack.ss_flags & SS_ONSTACK, "not on the alternate stack before");
    inside = 1;
    wait_go();
    must(sigaltstack(NULL, &stack));
    check(&here >= stacks[1] && &here < stacks[1] + sizeof stacks[1], "the handler runs elsewhere");
    check(stack.ss_sp == stacks[1] && stack.ss_size == sizeof stacks[1] && stack.ss_flags & SS_ONSTACK,
          "the stack in use is %p, %zu bytes, flags %x", stack.ss_sp, stack.ss_size, (unsigned)stack.ss_flags);
}

static void where(int signal) {
    char here;
    (void)signal;
    check(&here >= stacks[0] && &here < stacks[0] + sizeof stacks[0], "the handler does not run on its stack");
    left++;
}

static void *run(void *unused) {
    (void)unused;
    stack_t stack = {.ss_sp = stacks[1], .ss_size = sizeof stacks[1]};
    must(sigaltstack(&stack, NULL));
    volatile int below[100];
    for (int i = 0; i < 100; i++) below[i] = i * i;
    raise(SIGUSR1);
    for (int i = 0; i < 100; i++) check_equal(below[i], i * i);
    must(sigaltstack(NULL, &stack));
    check_equal(stack.ss_flags, 0);
    return NULL;
}

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    struct sigaction action = {.sa_handler = on_own_stack, .sa_flags = SA_ONSTACK};
    must(sigaction(SIGUSR1, &action, NULL));
    action.sa_handler = where;
    must(sigaction(SIGUSR2, &action, NULL));
    stack_t stack = {.ss_sp = stacks[0], .ss_size = sizeof stacks[0]};
    must(sigaltstack(&stack, NULL));
    pthread_t thread;
    must(-pthread_create(&thread, NULL, run, NULL));
    while (!inside) sleep_ms(1);
    ready();
    wait_go();

    if (sabotage()) {
        stack_t none = {.ss_flags = SS_DISABLE};
        must(sigaltstack(&none, NULL));
    }
    must(sigaltstack(NULL, &stack));
    check(stack.ss_sp == stacks[0] && stack.ss_size == sizeof stacks[0] && stack.ss_flags == 0,
          "the unused stack is %p, %zu bytes, flags %x", stack.ss_sp, stack.ss_size, (unsigned)stack.ss_flags);
    raise(SIGUSR2);
    check_equal(left, 1);
    pthread_join(thread, NULL);
    return finish();
}
