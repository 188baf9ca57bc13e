# The 64-bit probe: prints "B", counts 20 million in real mode, prints "R", enters long mode, counts 50 million there, checks a product that
# needs 64 bits and prints "L\n". Some machines let /dev/kvm open and emulate real mode well, but never get to R: only L proves
# that KVM runs 64-bit code.

.include "rom.inc"

HEADER L, 0, 0, 0

.set PML4, 0x10000               # page tables in low memory: 1 GiB mapped one to one in 2 MiB pages
.set PDPT, 0x11000
.set PD,   0x12000

go:
  movw $COM1, %dx
  movb $'B', %al
  outb %al, %dx
  movl $20000000, %ecx
1:
  decl %ecx
  jnz 1b
  movb $'R', %al
  outb %al, %dx

  movw $(PML4 >> 4), %ax
  movw %ax, %es
  xorw %di, %di
  xorl %eax, %eax
  movw $(3 * 4096 / 4), %cx
  rep stosl
  movl $(PDPT | 7), %es:0
  movl $(PD | 7), %es:(PDPT - PML4)
  movl $0x87, %eax               # present, writable, user, 2 MiB
  movw $(PD - PML4), %di
2:
  movl %eax, %es:(%di)
  addl $0x200000, %eax
  addw $8, %di
  cmpw $(PD - PML4 + 4096), %di
  jb 2b

  lgdtl %cs:gdtr
  movl $0x20, %eax               # PAE
  movl %eax, %cr4
  movl $PML4, %eax
  movl %eax, %cr3
  movl $0xc0000080, %ecx         # EFER.LME
  rdmsr
  orl $0x100, %eax
  wrmsr
  movl %cr0, %eax
  orl $0x80000001, %eax          # paging and protection: long mode begins
  movl %eax, %cr0
  ljmpl $8, $(ROM + long)

.code64
long:
  movl $0x10, %eax
  movl %eax, %ds
  movl %eax, %es
  movl %eax, %ss
  movl $50000000, %ecx
1:
  decl %ecx
  jnz 1b
  movabsq $0x123456789, %rax
  movq %rax, %r9
  imulq %r9, %rax
  movabsq $0x4b66dc326fb98751, %r8
  cmpq %r8, %rax
  jne 2f
  movw $COM1, %dx
  movb $'L', %al
  outb %al, %dx
  movb $'\n', %al
  outb %al, %dx
2:
  hlt
  jmp 2b

  .balign 8
gdt:
  .quad 0
  .quad 0x00af9b000000ffff       # 64-bit code
  .quad 0x00cf93000000ffff       # data
gdtr:
  .word 23
  .long ROM + gdt
