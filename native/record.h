/* SPDX-License-Identifier: MIT */
#ifndef RECORD_H
#define RECORD_H

/* `kvm-mmu-helper --record`: what follows it on the command line. The exit status. */
int record_command(int count, char **arguments);

#endif
