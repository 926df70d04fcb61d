import type { AttributeRun } from '../attributes/store.ts';
import { type GuestCpu, REGISTERS } from '../guest/registers.ts';
import { applyCpu, applyGuestMode, applyMmu, applyRegisters } from '../hardware-view.ts';
import type { IndexChange } from '../logged-map.ts';
import type { InvalidationState, LockState, Machine } from '../machine.ts';
import type { Memslots } from '../memory/memslots.ts';
import type { TlbEntry } from '../memory/tlb.ts';
import { toBigint } from '../memory/words.ts';
import type { Mmu } from '../roots/mmu.ts';
import type { MmuPage } from '../tdp/mmu-page.ts';
import { MMUS, type Vcpu } from '../vcpu.ts';
import { Kind, type LogEntry } from './log.ts';

/** Takes back the change that an entry is of, which must be the last that is not taken back; the log stays as it is. */
export function takeBack(machine: Machine, entry: LogEntry): void {
  // Each object was appended by the machine's method for its kind, with the shape that is read back here.
  switch (entry.kind) {
    case Kind.MEMORY:
    case Kind.ENTRY_BITS:
    case Kind.SPTE:
    case Kind.SPTE_UNTRACED:
    case Kind.TRANSLATION: {
      const page = machine.memory.writable(Math.floor(entry.address / 512));
      const word = 2 * (entry.address % 512);
      page[word] = entry.oldLo;
      page[word + 1] = entry.oldHi;
      break;
    }
    case Kind.REGISTER: {
      const vcpu = machine.vcpu(Math.floor(entry.address / 16));
      const name = REGISTERS[entry.address % 16]!;
      applyRegisters(machine, vcpu, { ...vcpu.registers, [name]: toBigint(entry.oldLo, entry.oldHi) });
      break;
    }
    case Kind.SLOTS:
      machine.slots = (entry.object as { before: Memslots }).before;
      break;
    case Kind.TLB_FILL:
    case Kind.TLB_DROP:
      machine.vcpu(entry.address).tlb.set(entry.oldLo, (entry.object as { old: TlbEntry | undefined }).old);
      break;
    case Kind.TLB_FLUSH: {
      const { tlb } = machine.vcpu(entry.address);
      tlb.entries = (entry.object as { before: (TlbEntry | undefined)[] }).before;
      tlb.count = tlb.list().length;
      break;
    }
    case Kind.LOCK:
    case Kind.UNLOCK:
      machine.locks[entry.address] = (entry.object as { before: LockState }).before;
      break;
    case Kind.INVALIDATE:
      machine.invalidation = (entry.object as { before: InvalidationState }).before;
      break;
    case Kind.TABLE_ALLOC:
      machine.pages.delete(entry.address);
      machine.memory.drop(entry.address);
      machine.tableFrames.untake({ pfn: entry.address, recycled: entry.oldLo === 1 });
      break;
    case Kind.TABLE_FREE: {
      const { page, content } = entry.object as { page: MmuPage; content: Uint32Array };
      machine.tableFrames.ungive();
      machine.pages.set(entry.address, page);
      machine.memory.writable(entry.address).set(content);
      break;
    }
    case Kind.TABLE_STATE:
      machine.pages.set(entry.address, (entry.object as { before: MmuPage }).before);
      break;
    case Kind.MMU: {
      const { before } = entry.object as { before: Mmu };
      applyMmu(machine, machine.vcpu(entry.address), MMUS[entry.oldLo]!, before);
      break;
    }
    case Kind.SMM: {
      const vcpu = machine.vcpu(entry.address);
      const { smm, registers } = (entry.object as { before: Pick<Vcpu, 'smm' | 'registers'> }).before;
      vcpu.smm = smm;
      applyRegisters(machine, vcpu, registers);
      break;
    }
    case Kind.GUEST_MODE: {
      const { before } = entry.object as { before: Pick<Vcpu, 'guestMode' | 'registers' | 'saved'> };
      applyGuestMode(machine, machine.vcpu(entry.address), before);
      break;
    }
    case Kind.FRAME_ALLOC:
      machine.memory.drop(entry.address);
      machine.tableFrames.untake({ pfn: entry.address, recycled: entry.oldLo === 1 });
      break;
    case Kind.FRAME_FREE:
      machine.tableFrames.ungive();
      machine.memory.writable(entry.address).set(entry.object as Uint32Array);
      break;
    case Kind.CPUID:
      applyCpu(machine, (entry.object as { before: GuestCpu }).before);
      break;
    case Kind.INDEX: {
      const { map, key, before } = entry.object as IndexChange;
      map.restore(key, before);
      break;
    }
    case Kind.REQUESTS:
      machine.vcpu(entry.address).requests = entry.oldLo;
      break;
    case Kind.ATTRIBUTES: {
      const { before } = entry.object as { before: AttributeRun[] };
      for (const run of before) machine.attributes.store.set(run.start, run.end, run.isPrivate);
      break;
    }
    default:
      break;
  }
}
