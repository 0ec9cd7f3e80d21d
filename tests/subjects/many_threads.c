/* 64 threads, each at work on its own sum. */
#include "subject.h"
#include <pthread.h>

enum { THREADS = 64 };

static volatile int started, stop;
static uint64_t sums[THREADS], steps[THREADS];

static void *run(void *argument) {
    size_t number = (size_t)argument;
    uint64_t sum = number, step = 0;
    __atomic_add_fetch(&started, 1, __ATOMIC_SEQ_CST);
    while (!stop) {
        sum = sum * 6364136223846793005u + 1442695040888963407u;
        if (++step % 4096 == 0) sleep_ms(2);
    }
    sums[number] = sum;
    steps[number] = step;
    return NULL;
}

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    pthread_t threads[THREADS];
    for (size_t i = 0; i < THREADS; i++) must(-pthread_create(&threads[i], NULL, run, (void *)i));
    while (started < THREADS) sleep_ms(1);
    ready();
    wait_go();
    sleep_ms(50);
    stop = 1;
    for (size_t i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    if (sabotage()) sums[5]++;
    for (size_t i = 0; i < THREADS; i++) {
        uint64_t expected = i;
        for (uint64_t step = 0; step < steps[i]; step++) expected = expected * 6364136223846793005u + 1442695040888963407u;
        check(sums[i] == expected, "thread %zu has another sum after %lu steps", i, steps[i]);
        check(steps[i] > 0, "thread %zu did nothing", i);
    }
    return finish();
}
