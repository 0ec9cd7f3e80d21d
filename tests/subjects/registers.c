/* Every register, held in a loop of two instructions that changes none of them but rcx: general purpose, flags (DF
 * and AC too), x87, SSE, AVX, AVX-512 and PKRU where the CPU has them, and the fs and gs bases. */
#include "subject.h"
#include <asm/prctl.h>
#include <cpuid.h>
#include <pthread.h>

enum { GENERAL = 14, FLAGS = 0x40cd5 /* AC, OF, DF, SF, ZF, AF, PF, CF */ };

/* Global, for the assembly below. */
volatile uint64_t stop;
volatile uint32_t spinning;
uint64_t general_in[GENERAL], general_out[GENERAL], flags_in, flags_out, flags_before, stack_in, stack_out;
_Alignas(64) unsigned char vectors_in[32][64], vectors_out[32][64];
uint64_t masks_in[8], masks_out[8];
double x87_in[8] = {1.5, -2.25, 3.125, 1e300, -1e-300, 6, 7, 8}, x87_out[8];
uint32_t mxcsr_in, mxcsr_out, mxcsr_before, pkru_in, pkru_out, pkru_before;
uint16_t control_in, control_out;
uint32_t has_avx, has_avx512, has_pku;

void spin(void);
__asm__(
    ".text\n.p2align 4\n.globl spin\n.hidden spin\nspin:\n"
    "push %rbx\npush %rbp\npush %r12\npush %r13\npush %r14\npush %r15\n"
    "mov %rsp, stack_in(%rip)\n"
    "pushfq\npopq flags_before(%rip)\n"
    "stmxcsr mxcsr_before(%rip)\nldmxcsr mxcsr_in(%rip)\n"
    "fninit\nfldcw control_in(%rip)\n"
    ".irp n,0,1,2,3,4,5,6,7\nfldl x87_in+8*\\n(%rip)\n.endr\n"
    "cmpl $0, has_pku(%rip)\nje 1f\n"
    "xor %ecx, %ecx\nrdpkru\nmov %eax, pkru_before(%rip)\nmov pkru_in(%rip), %eax\nxor %edx, %edx\nwrpkru\n"
    "1: cmpl $0, has_avx512(%rip)\njne 3f\ncmpl $0, has_avx(%rip)\njne 2f\n"
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\nmovdqa vectors_in+64*\\n(%rip), %xmm\\n\n.endr\njmp 4f\n"
    "2:\n.irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\nvmovdqa vectors_in+64*\\n(%rip), %ymm\\n\n.endr\njmp 4f\n"
    "3:\n.irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n"
    "vmovdqa64 vectors_in+64*\\n(%rip), %zmm\\n\n.endr\n"
    ".irp n,0,1,2,3,4,5,6,7\nkmovq masks_in+8*\\n(%rip), %k\\n\n.endr\n"
    "4: pushq flags_in(%rip)\npopfq\n"
    "mov general_in+0(%rip), %rax\nmov general_in+8(%rip), %rbx\nmov general_in+16(%rip), %rdx\n"
    "mov general_in+24(%rip), %rsi\nmov general_in+32(%rip), %rdi\nmov general_in+40(%rip), %rbp\n"
    "mov general_in+48(%rip), %r8\nmov general_in+56(%rip), %r9\nmov general_in+64(%rip), %r10\n"
    "mov general_in+72(%rip), %r11\nmov general_in+80(%rip), %r12\nmov general_in+88(%rip), %r13\n"
    "mov general_in+96(%rip), %r14\nmov general_in+104(%rip), %r15\n"
    "movl $1, spinning(%rip)\n"
    "5: mov stop(%rip), %rcx\njrcxz 5b\n"
    "mov %rax, general_out+0(%rip)\nmov %rbx, general_out+8(%rip)\nmov %rdx, general_out+16(%rip)\n"
    "mov %rsi, general_out+24(%rip)\nmov %rdi, general_out+32(%rip)\nmov %rbp, general_out+40(%rip)\n"
    "mov %r8, general_out+48(%rip)\nmov %r9, general_out+56(%rip)\nmov %r10, general_out+64(%rip)\n"
    "mov %r11, general_out+72(%rip)\nmov %r12, general_out+80(%rip)\nmov %r13, general_out+88(%rip)\n"
    "mov %r14, general_out+96(%rip)\nmov %r15, general_out+104(%rip)\nmov %rsp, stack_out(%rip)\n"
    "mov stack_in(%rip), %rsp\npushfq\npopq flags_out(%rip)\npushq flags_before(%rip)\npopfq\n"
    "cmpl $0, has_avx512(%rip)\njne 7f\ncmpl $0, has_avx(%rip)\njne 6f\n"
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\nmovdqa %xmm\\n, vectors_out+64*\\n(%rip)\n.endr\njmp 8f\n"
    "6:\n.irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\nvmovdqa %ymm\\n, vectors_out+64*\\n(%rip)\n.endr\nvzeroupper\njmp 8f\n"
    "7:\n.irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n"
    "vmovdqa64 %zmm\\n, vectors_out+64*\\n(%rip)\n.endr\n"
    ".irp n,0,1,2,3,4,5,6,7\nkmovq %k\\n, masks_out+8*\\n(%rip)\n.endr\nvzeroupper\n"
    "8: cmpl $0, has_pku(%rip)\nje 9f\n"
    "xor %ecx, %ecx\nrdpkru\nmov %eax, pkru_out(%rip)\nmov pkru_before(%rip), %eax\nxor %edx, %edx\nwrpkru\n"
    "9: fnstcw control_out(%rip)\n"
    ".irp n,7,6,5,4,3,2,1,0\nfstpl x87_out+8*\\n(%rip)\n.endr\nfninit\n"
    "stmxcsr mxcsr_out(%rip)\nldmxcsr mxcsr_before(%rip)\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbp\npop %rbx\nret\n");

static uint64_t base(int code) {
    uint64_t value = 0;
    must(syscall(SYS_arch_prctl, code, &value));
    return value;
}

static void *run(void *unused) {
    (void)unused;
    uint64_t fs = base(ARCH_GET_FS);
    must(syscall(SYS_arch_prctl, ARCH_SET_GS, 0x123456789000));
    spin();
    check_equal(base(ARCH_GET_FS), fs);
    check_equal(base(ARCH_GET_GS), 0x123456789000);
    return NULL;
}

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    __builtin_cpu_init();
    has_avx = __builtin_cpu_supports("avx") != 0;
    has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
    unsigned a, b, c = 0, d;
    has_pku = __get_cpuid_count(7, 0, &a, &b, &c, &d) && (c >> 4 & 1); /* OSPKE */
    fill(general_in, sizeof general_in, 1);
    fill(vectors_in, sizeof vectors_in, 2);
    fill(masks_in, sizeof masks_in, 3);
    flags_in = 0x202 | FLAGS;
    mxcsr_in = 0xffa0;   /* all masked, flush to zero, round to zero, inexact set */
    control_in = 0x0e7f; /* all masked, 53 bits, round to zero */
    pkru_in = 0xc0000000;
    pthread_t thread;
    must(-pthread_create(&thread, NULL, run, NULL));
    while (!spinning) sleep_ms(1);
    ready();
    wait_go();

    if (sabotage()) general_in[3] ^= 1;
    stop = 1;
    pthread_join(thread, NULL);
    for (int i = 0; i < GENERAL; i++)
        check(general_out[i] == general_in[i], "general register %d is %lx, expected %lx", i, general_out[i], general_in[i]);
    check_equal(stack_out, stack_in);
    check_equal(flags_out & FLAGS, flags_in & FLAGS);
    check_equal(mxcsr_out, mxcsr_in);
    check_equal(control_out, control_in);
    for (int i = 0; i < 8; i++) check(x87_out[i] == x87_in[i], "x87 register %d is %g", i, x87_out[i]);
    int registers = has_avx512 ? 32 : 16;
    size_t width = has_avx512 ? 64 : has_avx ? 32 : 16;
    for (int i = 0; i < registers; i++)
        check(memcmp(vectors_out[i], vectors_in[i], width) == 0, "vector register %d (%zu bytes) differs", i, width);
    for (int i = 0; has_avx512 && i < 8; i++) check_equal(masks_out[i], masks_in[i]);
    if (has_pku) check_equal(pkru_out, pkru_in);
    return finish();
}
