// Heat spreading through a plate, computed by two worker processes of two threads each.
//
//   heat STEPS LOG
//
// The plate lies in shared anonymous memory. Workers meet at a barrier after each step and send the state of their
// half to the parent through a pipe; the parent writes it to LOG. At the end it prints a hash of every bit of the
// plate, which depends on nothing but STEPS: a run that was interrupted must print the same.
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SIDE = 770, WORKERS = 2, THREADS = 2, REPORTS = 40 };

struct plate {
  pthread_barrier_t barrier;
  double cells[2][SIDE][SIDE];
};

struct message {
  int worker, step;
  double heat;
};

static struct plate *plate;
static int steps, to_parent;
static const double conductivity = 0.2;

struct share {
  int worker, first, last; // rows
};

static void step(double (*to)[SIDE], double (*from)[SIDE], int first, int last) {
  for (int y = first; y < last; y++)
    for (int x = 1; x < SIDE - 1; x++)
      to[y][x] = from[y][x] + conductivity * (from[y - 1][x] + from[y + 1][x] + from[y][x - 1] + from[y][x + 1] - 4 * from[y][x]);
}

static double heat(double (*cells)[SIDE], int first, int last) {
  double sum = 0;
  for (int y = first; y < last; y++)
    for (int x = 0; x < SIDE; x++) sum += cells[y][x];
  return sum;
}

static void *compute(void *argument) {
  struct share *share = argument;
  int rows = (share->last - share->first) * THREADS;
  for (int i = 0; i < steps; i++) {
    step(plate->cells[(i + 1) % 2], plate->cells[i % 2], share->first, share->last);
    pthread_barrier_wait(&plate->barrier);
    int leads = share->first == 1 + share->worker * rows;
    if (leads && (i + 1) % (steps / REPORTS) == 0) {
      struct message message = {share->worker, i + 1, heat(plate->cells[(i + 1) % 2], share->first, share->first + rows)};
      if (write(to_parent, &message, sizeof message) != sizeof message) _exit(1);
      // Nobody changes what was summed until all have read it.
    }
    pthread_barrier_wait(&plate->barrier);
  }
  return NULL;
}

static void work(int worker) {
  pthread_t threads[THREADS];
  struct share shares[THREADS];
  int rows = (SIDE - 2) / (WORKERS * THREADS);
  for (int i = 0; i < THREADS; i++) {
    int number = worker * THREADS + i;
    shares[i] = (struct share){worker, 1 + number * rows, 1 + (number + 1) * rows};
    pthread_create(&threads[i], NULL, compute, &shares[i]);
  }
  for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
  _exit(0);
}

static uint64_t hash(const void *data, size_t length) { // FNV-1a
  uint64_t hash = 14695981039346656037u;
  for (const unsigned char *byte = data; length--; byte++) hash = (hash ^ *byte) * 1099511628211u;
  return hash;
}

int main(int argc, char **argv) {
  if (argc != 3 || (steps = atoi(argv[1])) < REPORTS) return 2;
  FILE *log = fopen(argv[2], "w");
  plate = mmap(NULL, sizeof *plate, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  int ends[2];
  if (!log || plate == MAP_FAILED || pipe(ends)) return 1;
  to_parent = ends[1];
  pthread_barrierattr_t shared;
  pthread_barrierattr_init(&shared);
  pthread_barrierattr_setpshared(&shared, PTHREAD_PROCESS_SHARED);
  pthread_barrier_init(&plate->barrier, &shared, WORKERS * THREADS);
  for (int i = 0; i < SIDE; i++)
    for (int k = 0; k < 2; k++) plate->cells[k][0][i] = plate->cells[k][i][0] = 100;

  fflush(log);
  for (int i = 0; i < WORKERS; i++)
    if (fork() == 0) work(i);
  close(ends[1]);

  // Both halves of a report come in some order.
  double halves[WORKERS] = {0};
  int have = 0;
  for (struct message message; read(ends[0], &message, sizeof message) == sizeof message;) {
    halves[message.worker] = message.heat;
    if (++have % WORKERS == 0) {
      fprintf(log, "step %d: heat %.12g %.12g\n", message.step, halves[0], halves[1]);
      fflush(log);
    }
  }
  int failed = 0;
  for (int status; wait(&status) > 0;) failed |= status;
  if (failed) return 1;
  printf("after %d steps: hash %016llx\n", steps, (unsigned long long)hash(plate->cells[steps % 2], sizeof plate->cells[0]));
  return 0;
}
