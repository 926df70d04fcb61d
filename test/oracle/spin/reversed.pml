/*
 * The same two ioctls, in the order that was only thought of: attributes first, then what maps the page, and, with no lock, the RMP before
 * the direct map; and a thread of the kernel's that writes to the page beside. Here nothing keeps the ioctls apart.
 */
#define FREE 2

byte pc[3];              /* of task 0 (private), task 1 (shared) and the writer; 20: done */
byte mmu_lock = FREE;
bool attribute;
bool mixed;
byte seq;
byte in_progress;
byte range;              /* 0 none yet, 1 the page, 2 the 2M around it */
bool folio;              /* guest_memfd has a page for it */
bool assigned;           /* the RMP has that page as the guest's */
bool split;              /* the direct map has its 2M in 4K */
bool hole;               /* and leaves the page out */
bool written;            /* what the writer writes is there */

#define wanted(t) (t == 0)

inline step(t) {
  if
  :: pc[t] == 0 -> pc[t] = 1
  :: pc[t] == 1 -> pc[t] = 2                                           /* ioctl */
  :: pc[t] == 2 -> mmu_lock = t; pc[t] = 3
  :: pc[t] == 3 ->
     if :: in_progress == 0 || range == 0 -> range = 1 :: else fi;
     if :: !mixed -> range = 2 :: else fi;
     in_progress++; pc[t] = 4
  :: pc[t] == 4 -> mmu_lock = FREE; pc[t] = 5
  :: pc[t] == 5 -> attribute = wanted(t); pc[t] = 6
  :: pc[t] == 6 -> mmu_lock = t; pc[t] = 7
  :: pc[t] == 7 -> mixed = attribute; pc[t] = 8
  :: pc[t] == 8 -> pc[t] = 9                                           /* zap: the function is called */
  :: pc[t] == 9 -> pc[t] = 10                                          /* no root */
  :: pc[t] == 10 -> pc[t] = 11                                         /* no flush */
  :: pc[t] == 11 -> seq++; in_progress--; pc[t] = 12
  :: pc[t] == 12 -> mmu_lock = FREE; pc[t] = 13
  :: pc[t] == 13 -> pc[t] = 14                                         /* update: the function is called */
  :: pc[t] == 14 -> pc[t] = 15                                         /* the page is found */
  :: pc[t] == 15 ->                                                    /* first part: RMPUPDATE, or the direct map comes back */
     if
     :: t == 0 -> folio = true; assigned = true
     :: else -> hole = false
     fi;
     pc[t] = 16
  :: pc[t] == 16 ->                                                    /* second part */
     if
     :: t == 0 -> split = true; hole = true
     :: else -> assigned = false
     fi;
     pc[t] = 17
  :: pc[t] == 17 -> pc[t] = 18                                         /* no further page */
  :: pc[t] == 18 -> pc[t] = 19                                         /* no error */
  :: pc[t] == 19 -> pc[t] = 20                                         /* return */
  fi
}

inline write() {
  if
  :: pc[2] == 0 -> pc[2] = 1
  :: pc[2] == 1 -> if :: !split && assigned -> skip :: else -> written = true fi; pc[2] = 20
  fi
}

#define enabled(t) (pc[t] != 20 && !((pc[t] == 2 || pc[t] == 6) && mmu_lock != FREE))

active proctype tasks() {
end:
  do
  :: d_step { enabled(0) -> step(0) }
  :: d_step { enabled(1) -> step(1) }
  :: d_step { pc[2] != 20 -> write() }
  od
}
