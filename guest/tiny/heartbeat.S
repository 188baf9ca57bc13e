# The heartbeat guest: prints "H<8 hex ticks>\n" on COM1 at start and then ten times a second, sleeps in HLT in between, and writes
# cfg_rate pages per tick, cyclically over cfg_pages pages. A digit received on COM1 changes the rate: 0 stops writing,
# n from 1 to 9 sets 2^(n-1) pages per tick (9 is 256 pages, 100 MiB/s).
#
# Registers: ebp ticks, edi next page, esi pages per tick, esp stack for the interrupt only.

.include "rom.inc"

HEADER H, 1024, 0, 0

go:
  xorw %ax, %ax
  movw %ax, %ds
  movw %ax, %es
  movw %ax, %ss
  movw $0x7000, %sp
  xorl %ebp, %ebp
  xorl %edi, %edi
  movl %cs:cfg_rate, %esi
  call report                    # the first sign of life comes before all else
  UNREAL
  FILL
  # PIC: vectors from 0x20, only the timer unmasked
  movb $0x11, %al
  outb %al, $0x20
  movb $0x20, %al
  outb %al, $0x21
  movb $4, %al
  outb %al, $0x21
  movb $1, %al
  outb %al, $0x21
  movb $0xfe, %al
  outb %al, $0x21
  movw $timer, 4*0x20
  movw $0xf000, 4*0x20+2
  PIT

# All work is done here with interrupts off; the interrupt itself only ends HLT.
loop:
  sti
  hlt
  cli
  incl %ebp

  movw $COM1_LSR, %dx
  inb %dx, %al
  testb $1, %al
  jz write
  movw $COM1, %dx
  inb %dx, %al
  subb $'0', %al
  cmpb $9, %al
  ja write                       # no digit
  xorl %esi, %esi
  testb %al, %al
  jz write
  movb %al, %cl
  decb %cl
  incw %si
  shll %cl, %esi

write:
  movl %esi, %ecx
  jecxz beat
1:
  movl %edi, %ebx
  shll $12, %ebx
  addl $AREA, %ebx
  movl %ebp, %fs:(%ebx)
  movl %edi, %fs:8(%ebx)
  incl %edi
  cmpl %cs:cfg_pages, %edi
  jb 2f
  xorl %edi, %edi
2:
  decl %ecx
  jnz 1b

beat:
  movl %ebp, %eax
  xorl %edx, %edx
  movl $10, %ebx
  divl %ebx
  testl %edx, %edx
  jnz loop
  call report
  jmp loop

# report prints the heartbeat line. Uses eax, ebx, ecx, edx.
report:
  movb $'H', %al
  call put
  movl %ebp, %ebx
  movw $8, %cx
1:
  roll $4, %ebx
  movb %bl, %al
  andb $15, %al
  cmpb $10, %al
  jb 2f
  addb $('a' - '0' - 10), %al
2:
  addb $'0', %al
  call put
  loop 1b
  movb $'\n', %al
  call put
  ret

# put writes al to COM1, waiting for the transmitter, but not for ever: a console that nobody reads must not stop the guest. Uses edx.
put:
  pushw %cx
  pushw %ax
  movw $1000, %cx
  movw $COM1_LSR, %dx
1:
  inb %dx, %al
  testb $0x20, %al
  loopz 1b
  popw %ax
  popw %cx
  movw $COM1, %dx
  outb %al, %dx
  ret

timer:
  pushw %ax
  movb $0x20, %al
  outb %al, $0x20
  popw %ax
  iretw

GDT
