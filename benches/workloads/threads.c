/* Many threads that wait, each with something of its own. */
#include "job.h"

static long count;
static pthread_t *threads;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static long ready;
static int go;
static __thread uint64_t own;

static void *wait_for_go(void *argument)
{
    long index = (long)argument;
    own = scatter(index);
    pthread_mutex_lock(&lock);
    ready++;
    pthread_cond_broadcast(&changed);
    while (!go)
        pthread_cond_wait(&changed, &lock);
    pthread_mutex_unlock(&lock);
    return (void *)(own == scatter(index) ? index : -1);
}

static const char *check(void)
{
    pthread_mutex_lock(&lock);
    go = 1;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
    for (long i = 0; i < count; i++) {
        void *result;
        if (pthread_join(threads[i], &result) != 0 || (long)result != i)
            return "a thread has lost what was its own";
    }
    return NULL;
}

int main(int argc, char **argv)
{
    enter(argc, argv);
    count = number(argc, argv, 2);
    threads = calloc(count, sizeof *threads);
    for (long i = 0; i < count; i++)
        if ((errno = pthread_create(&threads[i], NULL, wait_for_go, (void *)i)) != 0)
            die("pthread_create");
    pthread_mutex_lock(&lock);
    while (ready < count)
        pthread_cond_wait(&changed, &lock);
    pthread_mutex_unlock(&lock);
    return live(check);
}
