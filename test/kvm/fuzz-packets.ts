import type { Random } from '../../adapter/conform/random.ts';

/** Valid packets of every kind in native/PROTOCOL.md, as a client of a machine with 16M at 0 and two vCPUs may send them. */
export const PACKETS: readonly string[] = [
  'qSupported:swbreak+;hwbreak+;vContSupported+',
  'QStartNoAckMode',
  'QNonStop:1',
  'QNonStop:0',
  '?',
  'g',
  `G${'00'.repeat(396)}`,
  'p10',
  'p2f',
  'P10=0010100000000000',
  'P11=02000000',
  'P12=10000000',
  'P1a=00000000000000000000',
  'P2c=1100008000000000',
  'P2e=0000200000000000',
  'P2f=2000000000000000',
  'P31=0005000000000000',
  'P34=ff0f000000000000',
  'm100000,40',
  'M600000,8:0000000000000000',
  'x100000,1000',
  // Twice the length is the number of digits, in 64 bits.
  'M600000,8000000000000008:0000000000000000',
  'X600000,8:\x00\x01\x02\x03\x04\x05\x06\x07',
  'X100000,3:\x0f\x0b\xcc',
  'vCont?',
  'vCont;c',
  'vCont;c:1',
  'vCont;s:2',
  'vCont;S05:1;c',
  'vCont;C05:-1',
  'vCont;t:1',
  'vCont;t',
  'vStopped',
  'Hg1',
  'Hg2',
  'Hc-1',
  'T1',
  'qC',
  'qfThreadInfo',
  'qsThreadInfo',
  'qThreadExtraInfo,1',
  'qXfer:features:read:target.xml:0,fff',
  'qXfer:features:read:target.xml:800,fff',
  'qAttached:1',
  'Z0,100700,1',
  'z0,100700,1',
  'Z1,100800,1',
  'z1,100800,1',
  'Z2,100800,8',
  'qRcmd,714b766d2e5374617473',
  'qRcmd,514b766d2e53746f703a',
  'Qqemu.PhyMemMode:1',
  'Qqemu.PhyMemMode:0',
  'qqemu.PhyMemMode',
  'QKvm.Events:1',
  'QKvm.Events:0',
  'qKvm.Info',
  'qKvm.Stats',
  'QKvm.Stop:guest-pf,second-stage,mmio,read-only',
  'QKvm.Stop:',
  'QKvm.Handler:100400',
  'vKvm.Trap:200000,2000,touch',
  'vKvm.Trap:100000,1000,write',
  'vKvm.Untrap:200000,2000',
  'vKvm.Slot:add,5,40000000,200000',
  'vKvm.Slot:add,6,50000000,1000,ro+log',
  'vKvm.Slot:delete,5',
  'vKvm.Slot:move,6,60000000',
  'vKvm.Slot:flags,0,log',
  'vKvm.Slot:flags,0,',
  'vKvm.Slot:flags,6,ro',
  'vKvm.Discard:300000,2000',
  'vKvm.Refresh',
  'qKvm.Dirty:0',
  'qKvm.Dirty:6',
  'vKvm.DirtyManual:1',
  'vKvm.DirtyManual:0',
  'vKvm.DirtyClear:0,0,40',
  'qKvm.DirtyRing:0',
  'vKvm.Attributes:100000,1000,private',
  'vKvm.PreFault:0,100000,2000',
  'QKvm.Violations:1',
  'QKvm.Violations:0',
  'qKvm.Violations',
  'QKvm.Trace:1',
  'QKvm.Trace:1,all',
  'QKvm.Trace:0',
  'qKvm.Trace',
  'qKvm.TraceFormats',
  'qKvm.TraceLost',
];

/** Packets that end the helper or its connection. */
export const ENDINGS: readonly string[] = ['k', 'D', 'vKill;1'];

const NUMBERS = [
  '0',
  '1',
  '-1',
  '3d',
  '',
  'fff',
  '1000',
  '7fffffff',
  '80000000',
  'ffffffff',
  '100000000',
  'fffffffff000',
  '1000000000000',
  '4000000000000000',
  '7fffffffffffffff',
  '8000000000000000',
  'fffffffffffff000',
  'ffffffffffffffff',
  '10000000000000000',
  'zz',
];
const LONGEST = 0x20000;

/** A packet that is somehow not what it was. */
function mutated(random: Random, packet: string): string {
  const at = random.below(packet.length + 1);
  const byte = (): string => String.fromCharCode(random.below(256));
  switch (random.below(10)) {
    case 0:
      return packet.slice(0, at);
    case 1:
    case 2:
    case 3: {
      // Another number, first of all where there is one.
      const places = [...packet.slice(1).matchAll(/[0-9a-f]+/g)];
      if (places.length === 0) return packet + random.pick(NUMBERS);
      const { index, 0: text } = random.pick(places);
      return packet.slice(0, index + 1) + random.pick(NUMBERS) + packet.slice(index + 1 + text.length);
    }
    case 4:
      return at < packet.length
        ? packet.slice(0, at) +
            String.fromCharCode(packet.charCodeAt(at) ^ (1 << random.below(8))) +
            packet.slice(at + 1)
        : packet + byte();
    case 5: {
      // A field twice, or not at all.
      const fields = packet.split(/(?<=[,;:=+])/);
      const which = random.below(fields.length);
      fields.splice(which, random.below(2), ...(random.once(2) ? [fields[which]!] : []));
      return fields.join('');
    }
    case 6:
      return packet.slice(0, at) + Array.from({ length: 1 + random.below(20) }, byte).join('') + packet.slice(at);
    case 7:
      return packet + random.pick(PACKETS);
    case 8:
      return packet.slice(0, at) + random.pick([',', ';', ':', '=', '-', '+', '\0', '%s%n', '“']) + packet.slice(at);
    default:
      return (
        packet + random.pick(['0', ',', 'f', '\0', ';c']).repeat(random.once(20) ? LONGEST : 1 + random.below(600))
      );
  }
}

/**
 * A host that runs out of memory tells nothing of the helper: KVM itself takes 2M for each G of a slot, and the helper would
 * give a guest all that it asks for.
 */
function asksForTooMuch(packet: string): boolean {
  const [, size] = /^vKvm\.Slot:add,[^,]*,[^,]*,([0-9a-f]+)/i.exec(packet) ?? [];
  return size !== undefined && Number.parseInt(size, 16) > 1 << 30 && Number.parseInt(size, 16) < 2 ** 44;
}

/** A packet of a batch: valid once in three times, else changed up to three times. Never one that ends the helper. */
export function drawPacket(random: Random): string {
  for (;;) {
    let packet = random.pick(PACKETS);
    for (let times = random.below(4); times > 0; times--) packet = mutated(random, packet);
    // Characters are bytes.
    packet = Buffer.from(packet.slice(0, 2 * LONGEST), 'latin1').toString('latin1');
    if (!/^(k|D|vKill)/.test(packet) && !asksForTooMuch(packet)) return packet;
  }
}
