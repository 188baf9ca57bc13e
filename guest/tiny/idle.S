# The idle guest: prints "I\n" on COM1 at start and then halts with interrupts off, for ever. It takes no processor time, so that what a
# host does for a VM that does nothing can be measured.

.include "rom.inc"

HEADER I, 0, 0, 0

go:
  movb $'I', %al
  call put
  movb $'\n', %al
  call put
1:
  hlt
  jmp 1b

# put writes al to COM1 as soon as the transmitter is free, and after 1000 looks anyway. Uses cx, dx.
put:
  pushw %ax
  movw $1000, %cx
  movw $COM1_LSR, %dx
1:
  inb %dx, %al
  testb $0x20, %al
  loopz 1b
  popw %ax
  movw $COM1, %dx
  outb %al, %dx
  ret
