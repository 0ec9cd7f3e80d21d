/* System V message queues: ids, keys, what waits in them, capacity. */
#include "subject.h"
#include <sys/ipc.h>
#include <sys/msg.h>

struct message {
    long type;
    unsigned char data[6000];
};

static void send(int queue, long type, size_t length) {
    struct message message = {.type = type};
    fill(message.data, length, (uint64_t)type);
    must(msgsnd(queue, &message, length, IPC_NOWAIT));
}

static void receive(int queue, long wanted, long type, size_t length) {
    struct message message;
    ssize_t got = msgrcv(queue, &message, sizeof message.data, wanted, IPC_NOWAIT);
    check_equal(got, length);
    check_equal(message.type, type);
    if (got == (ssize_t)length) check_filled(message.data, length, (uint64_t)type);
}

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    key_t key = 0x53000000 | getpid();
    int id = must(msgget(key, IPC_CREAT | IPC_EXCL | 0640)), private = must(msgget(IPC_PRIVATE, 0600));
    int fresh = must(msgget(key ^ 0x1000000, IPC_CREAT | 0600));
    send(id, 3, 6000);
    send(id, 1, 10);
    send(id, 3, 100);
    send(id, 2, 0);
    struct msqid_ds stat;
    must(msgctl(id, IPC_STAT, &stat));
    stat.msg_qbytes = 1000; /* Less than there is in it. */
    must(msgctl(id, IPC_SET, &stat));
    pid_t child = must(fork());
    if (child == 0) {
        struct message message;
        ssize_t got;
        /* A stop may interrupt it: signal(7). */
        while ((got = msgrcv(private, &message, sizeof message.data, 0, 0)) == -1 && errno == EINTR) {
        }
        check_equal(got, 4);
        finish_child();
    }
    sleep_ms(50);
    ready();
    wait_go();

    if (sabotage()) send(fresh, 1, 1);
    check_equal(msgget(key, 0), id);
    check_equal(msgget(key ^ 0x1000000, 0), fresh);
    must(msgctl(id, IPC_STAT, &stat));
    check_equal(stat.msg_qbytes, 1000);
    check_equal(stat.msg_qnum, 4);
    check_equal(stat.msg_perm.mode, 0640);
    check_equal(stat.msg_lspid, getpid());
    receive(id, 1, 1, 10);
    receive(id, 0, 3, 6000);
    receive(id, 0, 3, 100);
    receive(id, 0, 2, 0);
    must(msgctl(fresh, IPC_STAT, &stat));
    check_equal(stat.msg_qnum, 0);
    send(private, 9, 4);
    reap(child);
    must(msgctl(id, IPC_RMID, NULL));
    must(msgctl(private, IPC_RMID, NULL));
    must(msgctl(fresh, IPC_RMID, NULL));
    return finish();
}
