# The writing guest: a boot sector, not a ROM. The machine's own firmware (SeaBIOS) loads it from the disk that it writes to: blocks of
# 4 KiB, one per tick of the BIOS clock (18.2 a second), in turn at the eight places from sector RING on. A block begins with "GWWRITER", then its
# number in 8 bytes, then in 4 bytes how often the guest has booted. The number goes up by one from block to block, and a boot goes on behind the
# highest that it finds. A block that fails is tried again at the next tick, without end. When one is written it prints "W<8 hex number>\n" on COM1.
#
# Registers: ebp number of the last block, edi boots. Segments: ds code and packet, es the buffer.

.code16
.text
.globl _start

.set COM1, 0x3f8
.set COM1_LSR, 0x3fd             # line status: bit 5 the transmitter is free
.set LOAD, 0x7c0                 # segment where firmware loads a boot sector
.set BUFFER, 0x1000              # segment of the buffer
.set RING, 8                     # first sector of the ring
.set TICKS, 0x46c                # of the BIOS clock, in segment 0

_start:
  ljmp $LOAD, $go
go:
  cli
  xorw %ax, %ax
  movw %ax, %ss
  movw $0x7c00, %sp
  movw $LOAD, %ax
  movw %ax, %ds
  movw $BUFFER, %ax
  movw %ax, %es
  cld
  sti
  movb %dl, drive

# Read the whole ring and find the highest number and the boots in it.
find:
  movb $0x42, %ah
  call disk
  jc find
  xorl %ebp, %ebp
  xorl %edi, %edi
  xorw %bx, %bx
1:
  cmpl $0x52575747, %es:(%bx)    # GWWR
  jne 2f
  cmpl $0x52455449, %es:4(%bx)   # ITER
  jne 2f
  cmpl %ebp, %es:8(%bx)
  jb 2f
  movl %es:8(%bx), %ebp
  movl %es:16(%bx), %edi
2:
  addw $4096, %bx
  cmpw $0x8000, %bx
  jne 1b
  incl %edi

# From here on the buffer holds one block.
  movl $0x52575747, %es:0
  movl $0x52455449, %es:4
  movl $0, %es:12
  movl %edi, %es:16
  movw $8, count
next:
  incl %ebp
  movl %ebp, %es:8
  movl %ebp, %eax
  andl $7, %eax
  shll $3, %eax
  addl $RING, %eax
  movl %eax, sector
again:
  call tick
  movb $0x43, %ah
  call disk
  jc again
  call report
  jmp next

# disk does the packet with the function in ah; carry: it failed. The firmware's call may leave anything in the registers that are not saved.
disk:
  pushl %ebp
  pushl %edi
  pushw %es
  movb $0, %al
  movb drive, %dl
  movw $packet, %si
  int $0x13
  popw %es
  popl %edi
  popl %ebp
  ret

# tick waits for the next tick of the BIOS clock.
tick:
  pushw %ds
  xorw %ax, %ax
  movw %ax, %ds
  movb TICKS, %al
1:
  hlt
  cmpb TICKS, %al
  je 1b
  popw %ds
  ret

# report prints the number of the block.
report:
  movb $'W', %al
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

drive:
  .byte 0

# The packet of int 13h, functions 42h and 43h (EDD-3, "disk address packet").
  .balign 4
packet:
  .byte 16, 0
count:
  .word 64
  .word 0, BUFFER
sector:
  .quad RING

  .org 510
  .byte 0x55, 0xaa
