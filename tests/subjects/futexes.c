/* What libraries build on futexes: semaphores, conditions and barriers, between threads and between processes, with
 * a waiter on each. */
#include "subject.h"
#include <pthread.h>
#include <semaphore.h>
#include <sys/mman.h>

struct shared {
    sem_t semaphore;
    pthread_mutex_t mutex, held;
    pthread_cond_t condition;
    pthread_barrier_t barrier;
    pthread_rwlock_t lock;
    int turn, passes;
};
static struct shared *shared, *private;

static void set_up(struct shared *all, int sharing) {
    pthread_mutexattr_t mutex;
    pthread_condattr_t condition;
    pthread_barrierattr_t barrier;
    pthread_rwlockattr_t lock;
    pthread_mutexattr_init(&mutex), pthread_mutexattr_setpshared(&mutex, sharing);
    pthread_condattr_init(&condition), pthread_condattr_setpshared(&condition, sharing);
    pthread_barrierattr_init(&barrier), pthread_barrierattr_setpshared(&barrier, sharing);
    pthread_rwlockattr_init(&lock), pthread_rwlockattr_setpshared(&lock, sharing);
    must(sem_init(&all->semaphore, sharing, 0));
    must(-pthread_mutex_init(&all->mutex, &mutex));
    must(-pthread_mutex_init(&all->held, &mutex));
    must(-pthread_cond_init(&all->condition, &condition));
    must(-pthread_barrier_init(&all->barrier, &barrier, 6));
    must(-pthread_rwlock_init(&all->lock, &lock));
    must(-pthread_mutex_lock(&all->held));
    must(-pthread_rwlock_wrlock(&all->lock));
}

static void passed(struct shared *all) { __atomic_add_fetch(&all->passes, 1, __ATOMIC_SEQ_CST); }

/* Five kinds of waiting, then all meet at the barrier. */
static void waiter(struct shared *all, long kind) {
    switch (kind) {
        case 0:
            while (sem_wait(&all->semaphore) != 0 && errno == EINTR) {
            }
            break;
        case 1:
            pthread_mutex_lock(&all->mutex);
            while (!all->turn) pthread_cond_wait(&all->condition, &all->mutex);
            pthread_mutex_unlock(&all->mutex);
            break;
        case 2:
            pthread_mutex_lock(&all->held);
            pthread_mutex_unlock(&all->held);
            break;
        case 3:
            pthread_rwlock_rdlock(&all->lock);
            pthread_rwlock_unlock(&all->lock);
            break;
        case 4: break; /* waits at the barrier from the start */
    }
    if (kind != 4) passed(all);
    pthread_barrier_wait(&all->barrier);
}

static void *run(void *argument) {
    waiter(private, (long)argument);
    return NULL;
}

static void release(struct shared *all) {
    check_equal(all->passes, 0);
    if (sabotage()) all->passes = 1;
    check_equal(sem_post(&all->semaphore), 0);
    pthread_mutex_lock(&all->mutex);
    all->turn = 1;
    pthread_cond_broadcast(&all->condition);
    pthread_mutex_unlock(&all->mutex);
    check_equal(pthread_mutex_trylock(&all->held), EBUSY);
    check_equal(pthread_mutex_unlock(&all->held), 0);
    check_equal(pthread_rwlock_unlock(&all->lock), 0);
    pthread_barrier_wait(&all->barrier);
    check_equal(all->passes, 4);
}

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    shared = must(mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    private = must(calloc(1, sizeof *private));
    set_up(shared, PTHREAD_PROCESS_SHARED);
    set_up(private, PTHREAD_PROCESS_PRIVATE);
    pid_t children[5];
    for (long i = 0; i < 5; i++)
        if ((children[i] = must(fork())) == 0) {
            waiter(shared, i);
            finish_child();
        }
    pthread_t threads[5];
    for (long i = 0; i < 5; i++) must(-pthread_create(&threads[i], NULL, run, (void *)i));
    sleep_ms(100);
    ready();
    wait_go();
    release(private);
    release(shared);
    for (int i = 0; i < 5; i++) pthread_join(threads[i], NULL);
    for (int i = 0; i < 5; i++) reap(children[i]);
    return finish();
}
