/*
 * Two ioctls that make one page private and shared again, in the order of Linux 7.1, and nothing else. All of the state is in global variables,
 * and one process makes every step: what SPIN stores is exactly what an exploration of the same program must find.
 *
 * The page is gfn 1 of a slot of 4M, so that one 2M block lies around it and no 1G block.
 */
#define FREE 2

byte pc[2];              /* which step task 0 (private) and task 1 (shared) makes next; 18: done */
byte slots_lock = FREE;  /* whose it is */
byte mmu_lock = FREE;
bool attribute;          /* whether the page is private */
bool mixed;              /* whether the 2M around it is noted as mixed */
byte seq;                /* mmu_invalidate_seq */
byte in_progress;        /* mmu_invalidate_in_progress */
byte range;              /* hull of the ranges: 0 none yet, 1 the page, 2 the 2M around it */

/* What becomes true of the page when task t is through. */
#define wanted(t) (t == 0)

inline step(t) {
  if
  :: pc[t] == 0 -> pc[t] = 1                                           /* the statement: the function is called */
  :: pc[t] == 1 -> pc[t] = 2                                           /* ioctl */
  :: pc[t] == 2 -> slots_lock = t; pc[t] = 3
  :: pc[t] == 3 -> if :: attribute == wanted(t) -> pc[t] = 16 :: else -> pc[t] = 4 fi
  :: pc[t] == 4 -> pc[t] = 5                                           /* reserve */
  :: pc[t] == 5 -> mmu_lock = t; pc[t] = 6
  :: pc[t] == 6 ->                                                     /* begin, with the 2M while it is not mixed */
     if :: in_progress == 0 || range == 0 -> range = 1 :: else fi;
     if :: !mixed -> range = 2 :: else fi;
     in_progress++; pc[t] = 7
  :: pc[t] == 7 -> pc[t] = 8                                           /* zap: the function is called */
  :: pc[t] == 8 -> pc[t] = 9                                           /* there is no root whose leaves could be cleared */
  :: pc[t] == 9 -> pc[t] = 10                                          /* nothing was: no flush */
  :: pc[t] == 10 -> mmu_lock = FREE; pc[t] = 11
  :: pc[t] == 11 -> attribute = wanted(t); pc[t] = 12
  :: pc[t] == 12 -> pc[t] = 13                                         /* there is a slot */
  :: pc[t] == 13 -> mmu_lock = t; pc[t] = 14
  :: pc[t] == 14 -> seq++; in_progress--; pc[t] = 15
  :: pc[t] == 15 -> mixed = attribute; pc[t] = 17                      /* one page of 512 is private, or none is */
  :: pc[t] == 17 -> mmu_lock = FREE; pc[t] = 16
  :: pc[t] == 16 -> slots_lock = FREE; pc[t] = 19
  :: pc[t] == 19 -> pc[t] = 18                                         /* return */
  fi
}

#define enabled(t) (pc[t] != 18 && !(pc[t] == 2 && slots_lock != FREE) && !((pc[t] == 5 || pc[t] == 13) && mmu_lock != FREE))

active proctype tasks() {
end:
  do
  :: d_step { enabled(0) -> step(0) }
  :: d_step { enabled(1) -> step(1) }
  od
}
