# The checked guest: proves that a migration loses no write. It adds one to a counter in each of cfg_pages pages, all in lock-step, as fast
# as it can, and keeps the number of passes in a register. Registers travel with the device state and are always exact, so
# after a migration every counter must still equal the register; a page whose last writes were lost stays behind for ever.
# The cfg_fill pages are written once at start and must keep their mark.
#
# Every 50 ms it compares all pages and prints "C<8 hex passes> <8 hex bad pages> <8 hex most passes behind>\n" on COM1.
#
# It uses no memory but those pages: no stack, no interrupt, no variable. If it did, a lost write would crash it
# instead of being counted. "Calls" are jumps with the way back in sp.
#
# Registers: ebp passes, esp turns of the timer since the last report; while reporting: esi bad pages, edi most passes behind,
# sp the way back.

.include "rom.inc"

HEADER C, 144, 0, 0

.set REPORT_EVERY, 5             # turns of the 10 ms timer

go:
  xorw %ax, %ax
  movw %ax, %ds
  movw %ax, %es
  movw %ax, %ss
  UNREAL
  FILL
  # RAM is zero at power-on, but not after a reset: start the counters from nought.
  movl %cs:cfg_pages, %ecx
  movl $AREA, %ebx
  xorl %ebp, %ebp
1:
  movl %ebp, %fs:(%ebx)
  addl $4096, %ebx
  decl %ecx
  jnz 1b
  # The timer is polled by its output through the PIC's poll command: initialise it with automatic end of interrupt.
  movb $0x11, %al
  outb %al, $0x20
  movb $0x20, %al
  outb %al, $0x21
  movb $4, %al
  outb %al, $0x21
  movb $3, %al
  outb %al, $0x21
  movb $0xfe, %al
  outb %al, $0x21
  PIT
  movl $0, %esp                  # turns of the timer since the last report; the first report comes with pass 1
  jmp pass

# One pass: every counter up by one.
pass:
  incl %ebp
  movl %cs:cfg_pages, %ecx
  movl $AREA, %ebx
1:
  incl %fs:(%ebx)
  addl $4096, %ebx
  decl %ecx
  jnz 1b
  cmpl $1, %ebp
  je check
  movb $0x0c, %al                # poll: has the timer turned over?
  outb %al, $0x20
  inb $0x20, %al
  testb $0x80, %al
  jz pass
  incl %esp
  cmpl $REPORT_EVERY, %esp
  jb pass

check:
  xorl %esi, %esi
  xorl %edi, %edi
  movl %cs:cfg_pages, %ecx
  movl $AREA, %ebx
1:
  movl %ebp, %eax
  subl %fs:(%ebx), %eax
  jz 2f
  incl %esi
  cmpl %edi, %eax
  jbe 2f
  movl %eax, %edi
2:
  addl $4096, %ebx
  decl %ecx
  jnz 1b
  movl %cs:cfg_fill, %ecx
  jecxz report
3:
  movl %ebx, %eax
  xorl $FILL_MARK, %eax
  cmpl %fs:(%ebx), %eax
  je 4f
  incl %esi
4:
  addl $4096, %ebx
  decl %ecx
  jnz 3b

report:
  movb $'C', %al
  movw $1f, %sp
  jmp put
1:
  movl %ebp, %ebx
  movw $2f, %sp
  jmp hex
2:
  movb $' ', %al
  movw $3f, %sp
  jmp put
3:
  movl %esi, %ebx
  movw $4f, %sp
  jmp hex
4:
  movb $' ', %al
  movw $5f, %sp
  jmp put
5:
  movl %edi, %ebx
  movw $6f, %sp
  jmp hex
6:
  movb $'\n', %al
  movw $7f, %sp
  jmp put
7:
  xorl %esp, %esp
  jmp pass

# hex prints ebx as eight digits and jumps to sp. Uses eax, ecx, edx; the way back moves to the upper half of ecx, as put needs sp.
hex:
  movzwl %sp, %ecx
  shll $16, %ecx
  movb $8, %cl
1:
  roll $4, %ebx
  movb %bl, %al
  andb $15, %al
  cmpb $10, %al
  jb 2f
  addb $('a' - '0' - 10), %al
2:
  addb $'0', %al
  movw $3f, %sp
  jmp put
3:
  decb %cl
  jnz 1b
  shrl $16, %ecx
  jmp *%cx

# put writes al to COM1 and jumps to sp. It waits for the transmitter, but not for ever. Uses eax, edx.
put:
  movb %al, %ah
  movl $(1000 << 16 | COM1_LSR), %edx
1:
  inb %dx, %al
  testb $0x20, %al
  jnz 2f
  subl $0x10000, %edx
  cmpl $0x10000, %edx
  jae 1b
2:
  movb %ah, %al
  movw $COM1, %dx
  outb %al, %dx
  movw %sp, %dx
  jmp *%dx

GDT
