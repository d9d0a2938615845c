"""Virtual machines without a disk of their own: QEMU, Debian's cloud kernel, an initramfs made for it."""
