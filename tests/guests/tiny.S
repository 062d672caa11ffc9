/* A guest of a few instructions: a PVH entry that prints a line on port 0x3f8 and halts. What a
   monitor costs by itself. */
        .section .note.pvh, "a", @note
        .long   4, 4, 18                /* name size, descriptor size, XEN_ELFNOTE_PHYS32_ENTRY */
        .asciz  "Xen"
        .long   _start

        .text
        .code32
        .globl  _start
_start: cli
        mov     $line, %esi
        mov     $0x3f8, %dx
next:   lodsb
        test    %al, %al
        jz      halt
        out     %al, %dx
        jmp     next
halt:   hlt
        jmp     halt
line:   .asciz  "bench\n"
