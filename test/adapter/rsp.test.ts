import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { GuestMemory } from '../../adapter/kvm/memory.ts';
import { RspClient } from '../../adapter/rsp/client.ts';
import { type KvmInfo, parseInfo } from '../../adapter/rsp/info.ts';
import { connectSocket, spawnCommand } from '../../adapter/rsp/node-stream.ts';
import { encodePacket, fromLatin1, LONGEST, latin1, PacketReader, type RspEvent } from '../../adapter/rsp/packet.ts';
import { parseTargetDescription, readRegister, registerBytes } from '../../adapter/rsp/registers.ts';
import { parseStop, type StopEvent } from '../../adapter/rsp/stop.ts';
import { frame, Stub } from './rsp-stub.ts';

const numRuns = Number(process.env.FUZZ_RUNS ?? 2000);

/** Events as short text: `$content`, `%content`, `+`, `-`, `damaged: words`. */
function read(...chunks: string[]): string[] {
  const reader = new PacketReader();
  return chunks.flatMap((chunk) => reader.feed(latin1(chunk)).map(shown));
}

function shown(event: RspEvent): string {
  switch (event.kind) {
    case 'ack':
      return '+';
    case 'nak':
      return '-';
    case 'damaged':
      return `damaged: ${event.error.message}`;
    default:
      return `${event.kind === 'packet' ? '$' : '%'}${fromLatin1(event.content)}`;
  }
}

// ---- framing

const content = fc.oneof(
  fc.uint8Array({ maxLength: 300 }),
  fc
    .array(fc.constantFrom(...latin1('$#}*%+-\x03a'), 0, 255), { maxLength: 40 })
    .map((bytes) => Uint8Array.from(bytes)),
);

test('any bytes come out of a stream as they went in, in whatever chunks they arrive', () => {
  const sent = fc.record({ content, kind: fc.constantFrom('packet' as const, 'notification' as const) });
  // Between frames: acknowledgements, and noise that starts none.
  const between = fc.constantFrom('', '+', '-', '\n', 'noise\x03');
  fc.assert(
    fc.property(
      fc.array(fc.tuple(between, sent), { maxLength: 5 }),
      fc.array(fc.integer({ min: 1, max: 60 }), { minLength: 1, maxLength: 20 }),
      (frames, sizes) => {
        const stream = Buffer.concat(
          frames.flatMap(([noise, each]) => [latin1(noise), encodePacket(each.content, each.kind)]),
        );
        const reader = new PacketReader();
        const events: string[] = [];
        for (let at = 0, turn = 0; at < stream.length; turn++) {
          const size = sizes[turn % sizes.length]!;
          events.push(...reader.feed(stream.subarray(at, at + size)).map(shown));
          at += size;
        }
        assert.deepEqual(
          events,
          frames.flatMap(([noise, each]) => [
            ...(noise === '+' || noise === '-' ? [noise] : []),
            `${each.kind === 'packet' ? '$' : '%'}${fromLatin1(each.content)}`,
          ]),
        );
      },
    ),
    { numRuns },
  );
});

test('what a frame may not hold is escaped, and nothing else', () => {
  assert.equal(fromLatin1(encodePacket(latin1('a#b$c}d*e'))), `${frame('a}\x03b}\x04c}]d}\x0ae')}`);
  assert.equal(fromLatin1(encodePacket(latin1('%+-\x03\xff'), 'notification')), frame('%+-\x03\xff', '%'));
  assert.equal(fromLatin1(encodePacket(new Uint8Array())), '$#00');
});

test('runs and escapes of any kind are resolved', () => {
  assert.deepEqual(read(frame('0* ')), ['$0000']);
  assert.deepEqual(read(frame('a0*"b')), ['$a000000b']);
  // A run of an escaped byte, and one after another.
  assert.deepEqual(read(frame('}\x03* ')), ['$####']);
  assert.deepEqual(read(frame('x* y*!')), ['$xxxxyyyyy']);
  // Every byte may be escaped, also one that need not be.
  const piece = fc.tuple(fc.nat(255), fc.boolean(), fc.option(fc.integer({ min: 3, max: 97 })));
  fc.assert(
    fc.property(fc.array(piece, { maxLength: 30 }), (pieces) => {
      let raw = '';
      let plain = '';
      for (const [byte, isEscaped, run] of pieces) {
        const char = String.fromCharCode(byte);
        // No escape can stand for a byte that would itself end the frame or begin another.
        const escaped = '#$'.includes(String.fromCharCode(byte ^ 0x20)) ? char : `}${String.fromCharCode(byte ^ 0x20)}`;
        raw += isEscaped || '#$}*'.includes(char) ? escaped : char;
        plain += char;
        const count = run === null ? '' : String.fromCharCode(run + 29);
        // GDB's manual forbids these counts, for their characters mean something else.
        if (count === '' || '#$+-'.includes(count)) continue;
        raw += `*${count}`;
        plain += char.repeat(run!);
      }
      assert.deepEqual(read(frame(raw)), [`$${plain}`]);
    }),
    { numRuns },
  );
});

test('a damaged frame says what is wrong with it and the next one is whole', () => {
  const good = frame('OK');
  assert.deepEqual(read('$OK#9b', good), ['damaged: a packet’s checksum is 0x9a, its frame says 0x9b', '$OK']);
  assert.deepEqual(read('$OK#9', 'x', good), ['damaged: a packet’s checksum is 0x9a, its frame says none', '$OK']);
  assert.deepEqual(read('$m1000,', good), ['damaged: a packet began within another', '$OK']);
  assert.deepEqual(read(frame('abc}'), good), ['damaged: a packet ends within an escape', '$OK']);
  assert.deepEqual(read(frame('* '), good), ['damaged: byte 1 of a packet ends a run that has no character', '$OK']);
  assert.deepEqual(read(frame('a*\x1f'), good), ['damaged: byte 2 of a packet ends a run that has no length', '$OK']);
  assert.deepEqual(read(frame('a*'), good), ['damaged: byte 2 of a packet ends a run that has no length', '$OK']);
  assert.deepEqual(read('$OK#9A', '$OK#9a'), ['$OK', '$OK']);
});

test('a flipped bit of a frame never gives other content', () => {
  fc.assert(
    fc.property(content, fc.nat(), fc.integer({ min: 0, max: 7 }), (bytes, place, flip) => {
      const raw = encodePacket(bytes);
      const at = place % raw.length;
      raw[at]! ^= 1 << flip;
      // One that begins or ends a frame leaves the rest to chance.
      fc.pre(!'$#'.includes(String.fromCharCode(raw[at]!)));
      const packets = new PacketReader().feed(raw).flatMap((event) => (event.kind === 'packet' ? [event.content] : []));
      // The case of a checksum's digit is the one bit without a meaning.
      for (const packet of packets) assert.deepEqual(packet, bytes);
    }),
    { numRuns },
  );
});

test('hostile bytes neither throw nor keep the next frame from being read', () => {
  const bytes = fc.oneof(fc.nat(255), fc.constantFrom(...latin1('$%#}*+-~ 09af')));
  fc.assert(
    fc.property(fc.array(bytes, { maxLength: 400 }), (hostile) => {
      const reader = new PacketReader();
      reader.feed(Uint8Array.from(hostile));
      // Whatever state it is in, this ends a frame.
      reader.feed(latin1('#zz'));
      assert.deepEqual(reader.feed(latin1(frame('qC'))).map(shown), ['$qC']);
    }),
    { numRuns },
  );
});

test('a frame without end, and a few runs that stand for gigabytes, take no more memory than a frame may', () => {
  const reader = new PacketReader();
  reader.feed(latin1('$'));
  const chunk = new Uint8Array(1 << 20).fill(0x61);
  const before = process.memoryUsage().arrayBuffers;
  for (let i = 0; i < 40; i++) assert.deepEqual(reader.feed(chunk), []);
  assert.ok(process.memoryUsage().arrayBuffers - before < 4 * LONGEST);
  assert.deepEqual(reader.feed(latin1('#00')).map(shown), [
    `damaged: a packet has more than the ${LONGEST} bytes that are accepted`,
  ]);
  assert.deepEqual(reader.feed(latin1(frame('OK'))).map(shown), ['$OK']);
  const runs = `a${'*~'.repeat(1 << 20)}`;
  const [event] = read(frame(runs));
  assert.equal(
    event,
    `damaged: a packet has ${1 + 97 * 2 ** 20} bytes with its runs, more than the ${LONGEST} that are accepted`,
  );
});

// ---- the client

const XML = `<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd"><target version="1.0">
  <feature name="org.gnu.gdb.i386.core"><reg name="rax" bitsize="64"/><reg name="eflags" bitsize="32" regnum="4"/></feature>
  <feature name="org.kvm-mmu.system"><reg name="cr3" bitsize="64"/></feature></target>`;

/** Answers as the helper does, without what `other` answers; as raw bytes. */
function helperStub(other: (packet: string) => string | undefined = () => undefined): Stub {
  let acks = true;
  const stub: Stub = new Stub((packet) => {
    const ack = acks ? '+' : '';
    if (packet === 'QStartNoAckMode') acks = false;
    const raw = other(packet);
    if (raw !== undefined) return raw;
    const reply = helperReply(packet);
    return reply === undefined ? undefined : ack + frame(reply);
  });
  return stub;
}

function helperReply(packet: string): string | undefined {
  if (packet.startsWith('qSupported'))
    return 'PacketSize=1000;QStartNoAckMode+;QNonStop+;vContSupported+;binary-upload+;qXfer:features:read+;kvm-mmu+';
  if (/^(Q|Hg|vCont;|[PXZz])/.test(packet)) return 'OK';
  if (packet === '?') return 'T05thread:1;kvm:reason=start,rip=0;';
  if (packet === 'vStopped') return 'OK';
  if (packet.startsWith('qXfer:features:read:target.xml:')) return `l${XML}`;
  return '';
}

/** A stub that knows the least: all-stop, with acknowledgements. */
function plainStub(other: (packet: string) => string | undefined = () => undefined): Stub {
  return new Stub((packet) => {
    const raw = other(packet);
    if (raw !== undefined) return raw;
    if (packet === '?') return `+${frame('S05')}`;
    if (packet.startsWith('vCont') || packet === 'k') return '+';
    if (/^(Hg|P|M)/.test(packet)) return `+${frame('OK')}`;
    if (packet.startsWith('m')) return `+${frame('deadbeef')}`;
    return `+${frame('')}`;
  });
}

async function connected(stub: Stub): Promise<RspClient> {
  const client = new RspClient(stub);
  await client.handshake();
  stub.heard.length = 0;
  return client;
}

const tick = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 5));

const QSUPPORTED = 'qSupported:swbreak+;hwbreak+;vContSupported+;binary-upload+;kvm-mmu+';

test('the handshake with the helper: no acknowledgements, its events, non-stop, every vCPU that stands', async () => {
  const more = ['T05thread:2;kvm:reason=pause,completed=0;', 'OK'];
  const stub = helperStub((packet) => (packet === 'vStopped' ? frame(more.shift()!) : undefined));
  const client = new RspClient(stub);
  const stops = await client.handshake();
  assert.deepEqual(stub.heard, [
    QSUPPORTED,
    '+',
    'QStartNoAckMode',
    '+',
    'QKvm.Events:1',
    'QNonStop:1',
    '?',
    'vStopped',
    'vStopped',
  ]);
  assert.equal(client.isHelper, true);
  assert.equal(client.features.get('PacketSize'), '1000');
  assert.deepEqual(
    stops.map((stop) => stop.kind === 'stopped' && [stop.thread, stop.kvm?.reason, stop.kvm?.completed]),
    [
      ['1', 'start', undefined],
      ['2', 'pause', false],
    ],
  );
});

test('the handshake with a plain gdb stub asks for nothing that it lacks', async () => {
  const stub = plainStub();
  const client = new RspClient(stub);
  assert.deepEqual(await client.handshake(), [{ kind: 'stopped', thread: undefined, signal: 5 }]);
  assert.deepEqual(stub.heard, [QSUPPORTED, '+', '?', '+']);
  assert.equal(client.isHelper, false);
  await assert.rejects(client.info(), /^Error: the stub does not know the packet "qKvm\.Info"$/);
  await assert.rejects(client.readPhysical(0n, 4), /the stub does not know "Qqemu\.PhyMemMode:1"/);
  assert.deepEqual([...(await client.readVirtual('1', 0x1000n, 4))], [0xde, 0xad, 0xbe, 0xef]);
  await client.writeVirtual('1', 0x1000n, Uint8Array.of(1, 2));
  const packets = stub.heard.filter((each) => each !== '+');
  // X is tried, its bytes follow; a stub without it gets digits.
  assert.deepEqual(packets.slice(-4), ['Hg1', 'm1000,4', 'X1000,2:\x01\x02', 'M1000,2:0102']);
});

test('all-stop: a running machine is only asked to stop; what the guest prints and the stop arrive', async () => {
  const stub = plainStub();
  const client = await connected(stub);
  const stops: StopEvent[] = [];
  let said = '';
  client.onStop((event) => stops.push(event));
  client.onConsole((bytes) => {
    said += fromLatin1(bytes);
  });
  await client.resume('all');
  await assert.rejects(
    client.readVirtual('1', 0n, 4),
    /^Error: "Hg1" cannot be asked while the machine runs: the stub has no non-stop mode$/,
  );
  await assert.rejects(client.resume('1'), /cannot be asked while the machine runs/);
  stub.send(frame('O68656c6c6f'));
  await client.stop('1');
  assert.deepEqual(stub.heard, ['vCont;c', '\x03']);
  stub.send(frame('T02thread:1;'));
  await tick();
  assert.equal(said, 'hello');
  assert.deepEqual(stops, [{ kind: 'stopped', thread: '1', signal: 2 }]);
  await client.resume('1', 'step');
  assert.equal(stub.heard.at(-1), 'vCont;s:1');
  stub.send(frame('W2a'));
  await tick();
  assert.deepEqual(stops[1], { kind: 'exited', status: 42 });
});

test('a packet that was called damaged is sent again, three times in all', async () => {
  let naks = 2;
  const stub = plainStub((packet) => (packet === 'qC' ? (naks-- > 0 ? '-' : `+${frame('QC1')}`) : undefined));
  const client = await connected(stub);
  assert.equal(await client.vendor('qC'), 'QC1');
  assert.deepEqual(stub.heard, ['qC', 'qC', 'qC', '+']);
  naks = 3;
  await assert.rejects(client.vendor('qC'), /^Error: the stub called "qC" damaged 3 times$/);
  assert.equal(stub.closed, true);
});

test('a damaged answer is asked for again where there are acknowledgements, and else ends the connection', async () => {
  const stub = plainStub((packet) => (packet === 'qC' ? '+$QC1#00' : undefined));
  const client = await connected(stub);
  const answer = client.vendor('qC');
  await tick();
  assert.deepEqual(stub.heard, ['qC', '-']);
  stub.send(frame('QC1'));
  assert.equal(await answer, 'QC1');
  // What is sent twice by mistake answers nothing.
  stub.send(frame('QC1'));
  stub.send(frame('QC1'));
  await tick();
  assert.deepEqual([...(await client.readVirtual('1', 0n, 4))], [0xde, 0xad, 0xbe, 0xef]);

  const helper = helperStub((packet) => (packet === 'qC' ? '$QC1#00' : undefined));
  await assert.rejects(
    (await connected(helper)).vendor('qC'),
    /^Error: the stub: a packet’s checksum is 0xc5, its frame says 0x0$/,
  );
});

test('requests are answered in their order, one at a time, with notifications between', async () => {
  const waiting = [
    'T05thread:2;kvm:reason=mmio,gpa=fee00000,access=read;',
    'T05thread:3;kvm:reason=halt,completed=1;',
    'OK',
  ];
  const stub = helperStub((packet) => {
    if (packet === 'vStopped') return frame(waiting.shift()!);
    if (packet === 'qC')
      return `${frame('KvmConsole:6869', '%')}${frame('Stop:T05thread:1;kvm:reason=port,port=4b,data=0,completed=1;', '%')}${frame('QC1')}`;
    return packet === 'qsThreadInfo' ? frame('l') : undefined;
  });
  waiting.unshift('OK');
  const client = await connected(stub);
  const stops: StopEvent[] = [];
  let said = '';
  client.onStop((event) => stops.push(event));
  client.onConsole((bytes) => {
    said += fromLatin1(bytes);
  });
  const answers = await Promise.all([client.vendor('qC'), client.vendor('qsThreadInfo')]);
  await tick();
  assert.deepEqual(answers, ['QC1', 'l']);
  assert.equal(said, 'hi');
  assert.deepEqual(stub.heard, ['qC', 'qsThreadInfo', 'vStopped', 'vStopped', 'vStopped']);
  assert.deepEqual(
    stops.map((stop) => stop.kind === 'stopped' && [stop.thread, stop.kvm?.reason]),
    [
      ['1', 'port'],
      ['2', 'mmio'],
      ['3', 'halt'],
    ],
  );
});

test('errors are the stub’s words, or its number', async () => {
  const replies = new Map([
    ['Z1,1000,1', 'E.2 hardware breakpoints are possible'],
    ['Z0,1000,1', 'E0e'],
    ['vCont;c:9', 'E16'],
    ['x10,4', 'E.nothing is mapped at 0x10'],
    ['x20,4', 'E0e'],
    ['x30,4', 'OK'],
    ['QKvm.Stop:x', 'maybe'],
  ]);
  const stub = helperStub((packet) => {
    const reply = replies.get(packet);
    return reply === undefined ? undefined : frame(reply);
  });
  const client = await connected(stub);
  await assert.rejects(
    client.insertBreakpoint('hardware', 0x1000n),
    /^Error: "Z1,1000,1": 2 hardware breakpoints are possible$/,
  );
  await assert.rejects(client.insertBreakpoint('software', 0x1000n), /^Error: "Z0,1000,1": error 14$/);
  await assert.rejects(client.resume('9'), /^Error: "vCont;c:9": error 22$/);
  await assert.rejects(client.readPhysical(0x10n, 4), /^Error: "x10,4": nothing is mapped at 0x10$/);
  await assert.rejects(client.readPhysical(0x20n, 4), /^Error: "x20,4": error 14$/);
  await assert.rejects(client.readPhysical(0x30n, 4), /^Error: the answer to x30,4 begins with "OK", not with b$/);
  await assert.rejects(client.vendor('vKvm.Nothing'), /^Error: the stub does not know the packet "vKvm\.Nothing"$/);
  // None of it ends the connection.
  assert.equal(await client.vendor('QKvm.Stop:x'), 'maybe');
});

test('memory is read in chunks of a packet, to where it ends', async () => {
  const stub = helperStub((packet) => {
    const [, address, length] = /^x([0-9a-f]+),([0-9a-f]+)$/.exec(packet) ?? [];
    if (address === undefined) return undefined;
    const at = Number.parseInt(address, 16);
    if (at >= 0x2800) return frame('E.nothing is mapped there');
    const size = Math.min(Number.parseInt(length!, 16), 0x2800 - at);
    return fromLatin1(
      encodePacket(latin1(`b${Array.from({ length: size }, (_, n) => String.fromCharCode((at + n) & 255)).join('')}`)),
    );
  });
  const client = await connected(stub);
  const bytes = await client.readPhysical(0x1003n, 0x2000);
  assert.equal(bytes.length, 0x17fd);
  assert.ok(bytes.every((byte, n) => byte === ((0x1003 + n) & 255)));
  const asked = stub.heard.filter((each) => each.startsWith('x'));
  assert.ok(asked.length > 3 && asked[0] === 'x1003,7e0', asked.join(' '));
  await assert.rejects(client.readPhysical(0x2800n, 1), /nothing is mapped there/);
  // Binary bytes arrive as they were sent, chunk by chunk.
  stub.heard.length = 0;
  await client.writePhysical(
    0x1000n,
    Uint8Array.from({ length: 0x800 }, (_, n) => n & 0xff),
  );
  assert.deepEqual(
    stub.heard.map((each) => each.slice(0, each.indexOf(':'))),
    ['X1000,7e0', 'X17e0,20'],
  );
});

test('registers are named by the target description, and one that the stub cannot tell is left out', async () => {
  const stub = helperStub((packet) => (packet === 'g' ? frame('0102030405060708xxxxxxxx00f0ffff00000000') : undefined));
  const client = await connected(stub);
  assert.deepEqual(
    await client.readRegisters('1'),
    new Map([
      ['rax', 0x0807060504030201n],
      ['cr3', 0xfffff000n],
    ]),
  );
  await client.writeRegisters('1', { cr3: 0x2000n });
  assert.equal(stub.heard.at(-1), 'P5=0020000000000000');
  await assert.rejects(client.writeRegisters('1', { cr9: 0n }), /there is no register cr9: rax, eflags, cr3/);
  await assert.rejects(
    client.writeRegisters('1', { eflags: 1n << 32n }),
    /0x100000000 does not fit register eflags, which has 32 bits/,
  );
});

test('a lost connection rejects what is pending and what follows, and is told once', async () => {
  const stub = helperStub((packet) => (packet === 'qC' ? '' : undefined));
  const client = await connected(stub);
  const told: string[] = [];
  client.onLost((error) => told.push(error.message));
  const pending = Promise.allSettled([client.vendor('qC'), client.vendor('qKvm.Info'), client.readPhysical(0n, 8)]);
  stub.end('exit status 1\nkvm-mmu-helper: no memory');
  const words = 'the stub has ended: exit status 1\nkvm-mmu-helper: no memory';
  assert.deepEqual(
    (await pending).map((each) => each.status === 'rejected' && each.reason.message),
    [words, words, words],
  );
  await assert.rejects(client.resume('all'), { message: words });
  stub.end('again');
  await tick();
  assert.deepEqual(told, [words]);
});

test('a process that ends is named, with what it wrote to standard error last', async () => {
  const script = `process.stdin.once('data', () => {
    for (let line = 1; line <= 9; line++) console.error('line ' + line);
    process.exitCode = 3; process.stdin.destroy();
  })`;
  const client = new RspClient(spawnCommand([process.execPath, '-e', script]));
  await assert.rejects(client.handshake(), {
    message: `${process.execPath} has ended: exit status 3\nline 5\nline 6\nline 7\nline 8\nline 9`,
  });
  await assert.rejects(new RspClient(spawnCommand(['/nowhere/helper'])).handshake(), {
    message: '/nowhere/helper has ended: spawn /nowhere/helper ENOENT',
  });
  await assert.rejects(new RspClient(connectSocket('/nowhere/socket')).handshake(), {
    message: '/nowhere/socket has ended: connect ENOENT /nowhere/socket',
  });
});

test('a notification that makes no sense ends the connection with words', async () => {
  const stub = helperStub();
  const client = await connected(stub);
  const told: string[] = [];
  client.onLost((error) => told.push(error.message));
  stub.send(frame('Stop:T05thread:1;kvm:reason=lunch;', '%'));
  await tick();
  assert.equal(told.length, 1);
  assert.match(
    told[0]!,
    /^the stub: reason="lunch" in a stop’s kvm: field is none of start, pause, step, breakpoint, /,
  );
  assert.equal(stub.closed, true);
});

test('kill and detach end the connection and are no loss', async () => {
  const stub = helperStub((packet) => (packet === 'D' ? frame('OK') : undefined));
  const client = await connected(stub);
  client.onLost(() => assert.fail('told as lost'));
  await client.detach();
  assert.deepEqual([stub.heard, stub.closed], [['D'], true]);
  await assert.rejects(client.vendor('qC'), /the stub was detached/);
  const other = helperStub();
  const second = await connected(other);
  second.kill();
  assert.deepEqual([other.heard, other.closed], [['k'], true]);
});

// ---- what packets say

test('stop replies of every kind are read', () => {
  assert.deepEqual(
    parseStop(
      'T05thread:2;swbreak:;kvm:reason=guest-pf,access=write,gva=ffff888000001000,error=3,rip=401000,completed=0,exact=gva+error,derived=access;',
    ),
    {
      kind: 'stopped',
      thread: '2',
      signal: 5,
      kvm: {
        reason: 'guest-pf',
        access: 'write',
        gva: 0xffff888000001000n,
        error: 3,
        rip: 0x401000n,
        completed: false,
        exact: ['gva', 'error'],
        derived: ['access'],
      },
    },
  );
  // Words have commas of their own; a field of a newer helper is left alone.
  const { kvm } = parseStop('T04thread:1;kvm:reason=error,new=1,errno=5,words=KVM_RUN: input, output=error;') as {
    kvm: object;
  };
  assert.deepEqual(kvm, { reason: 'error', errno: 5, words: 'KVM_RUN: input, output=error', exact: [], derived: [] });
  assert.deepEqual(parseStop('X09'), { kind: 'exited', signal: 9 });
});

for (const [reply, words] of [
  ['', /^Error: "" is no stop reply: T, S, W or X and two digits begin one$/],
  ['OK', /"OK" is no stop reply/],
  ['T0', /"T0" is no stop reply/],
  ['T05kvm:;', /"" in a stop’s kvm: field is not name=value/],
  ['T05kvm:reason;', /"reason" in a stop’s kvm: field is not name=value/],
  ['T05kvm:gva=1000;', /a stop’s kvm: field "gva=1000" has no reason/],
  ['T05kvm:reason=mmio,gpa=;', /gpa="" in a stop’s kvm: field is no number of at most 16 hexadecimal digits/],
  ['T05kvm:reason=mmio,gpa=0x1000;', /gpa="0x1000" in a stop’s kvm: field is no number/],
  ['T05kvm:reason=mmio,gpa=11112222333344445;', /gpa="11112222333344445" in a stop’s kvm: field is no number/],
  ['T05kvm:reason=mmio,access=eat;', /access="eat" in a stop’s kvm: field is none of read, write, fetch/],
  ['T05kvm:reason=mmio,completed=2;', /completed="2" in a stop’s kvm: field is none of 0, 1/],
] as const) {
  test(`the stop reply ${JSON.stringify(reply)} is refused in words`, () => {
    assert.throws(() => parseStop(reply), words);
  });
}

test('no text of a stop, of the machine or of a target throws anything but an error of the protocol', () => {
  const hints = [
    'T05',
    'kvm:',
    'reason=',
    'mmio',
    ',',
    ';',
    '=',
    'words=',
    '{',
    '"',
    '<target>',
    '<reg ',
    'name="',
    '>',
    '&a;',
  ];
  const text = fc.array(fc.oneof(fc.constantFrom(...hints), fc.string({ maxLength: 4 })), { maxLength: 12 });
  fc.assert(
    fc.property(text, (parts) => {
      for (const parse of [parseStop, parseInfo, parseTargetDescription]) {
        try {
          parse(parts.join(''));
        } catch (error) {
          assert.equal((error as Error).constructor.name, 'RspError', String(error));
        }
      }
    }),
    { numRuns },
  );
});

const INFO = {
  version: 1,
  pid: 4242,
  boot: '',
  secondStage: 'shadow',
  memory: { fd: 5, inode: 77, slots: [{ id: 0, gpa: '0x0', size: '0x4000000', flags: 'ro+log', offset: '0x1000' }] },
  vcpus: 2,
  maxphyaddr: 48,
  pages1g: true,
  vendor: 'GenuineIntel',
  has: { userfaultfd: '', 'pre-fault': 'this kernel has no KVM_PRE_FAULT_MEMORY' },
};

test('what the helper says of its machine is read', () => {
  const expected: KvmInfo = {
    version: 1,
    pid: 4242,
    boot: '',
    secondStage: 'shadow',
    memory: {
      fd: 5,
      inode: 77,
      slots: [{ id: 0, gpa: 0n, size: 0x4000000n, flags: ['ro', 'log'], offset: 0x1000n }],
      private: [],
    },
    vcpus: 2,
    maxphyaddr: 48,
    pages1g: true,
    vendor: 'GenuineIntel',
    has: { userfaultfd: '', 'pre-fault': 'this kernel has no KVM_PRE_FAULT_MEMORY' },
  };
  assert.deepEqual(parseInfo(JSON.stringify({ ...INFO, newer: [1] })), expected);
  const hidden = parseInfo(JSON.stringify({ ...INFO, memory: { ...INFO.memory, private: [['0x2000', '0x1000']] } }));
  assert.deepEqual(hidden.memory.private, [{ gpa: 0x2000n, size: 0x1000n }]);
});

test('of a slot with a guest_memfd the host sees what is shared alone', () => {
  const slot = (gpa: bigint, flags: readonly string[]) => ({ id: 0, gpa, size: 0x8000n, flags, offset: 0n });
  const seen = (flags: readonly string[], ...hidden: readonly (readonly [bigint, bigint])[]): string => {
    const reads: bigint[] = [];
    const memory = new GuestMemory({
      readNow: (offset) => {
        reads.push(offset >> 12n);
        return new Uint8Array(4096);
      },
      fetch: () => assert.fail('nothing is fetched'),
    });
    memory.renew({ slots: [slot(0x10000n, flags)], private: hidden.map(([gpa, size]) => ({ gpa, size })) }, new Map());
    const frames = Array.from({ length: 12 }, (_, index) => 0xe + index).filter((frame) => memory.has(frame));
    for (const frame of frames) memory.page(frame);
    return `${frames.map((frame) => frame.toString(16)).join(' ')}; ${reads.join(' ')}`;
  };
  const all = '10 11 12 13 14 15 16 17; 0 1 2 3 4 5 6 7';
  assert.equal(seen(['private']), all);
  assert.equal(seen([], [0x11000n, 0x2000n]), all);
  assert.equal(seen(['private'], [0x11000n, 0x2000n]), '10 13 14 15 16 17; 0 3 4 5 6 7');
  assert.equal(
    seen(['private'], [0xe000n, 0x3000n], [0x14000n, 0x1000n], [0x17000n, 0x9000n]),
    '11 12 13 15 16; 1 2 3 5 6',
  );
  assert.equal(seen(['private'], [0n, 0x10000n], [0x18000n, 0x1000n]), all);
  assert.equal(seen(['private'], [0n, 0x100000n]), '; ');
});

for (const [change, words] of [
  [{ version: 2 }, /^Error: the helper speaks version 2 of its protocol; 1 is understood$/],
  [{ version: '1' }, /^Error: version in the answer to qKvm\.Info is "1", not a whole number from 0$/],
  [{ pid: -1 }, /pid in the answer to qKvm\.Info is -1, not a whole number/],
  [{ pid: undefined }, /pid in the answer to qKvm\.Info is missing, not a whole number/],
  [{ secondStage: 'tdp' }, /secondStage in the answer to qKvm\.Info is "tdp", none of ept, npt, shadow/],
  [{ secondStage: undefined }, /secondStage in the answer to qKvm\.Info is missing, not text/],
  [{ memory: [] }, /memory in the answer to qKvm\.Info is \[\], not an object/],
  [{ memory: { fd: 5, inode: 77, slots: 7 } }, /slots in the answer to qKvm\.Info is 7, not a list/],
  [{ memory: { fd: 5, inode: 77, slots: [{ id: 0, gpa: 0 }] } }, /gpa in the answer to qKvm\.Info is 0, not text/],
  [
    { memory: { fd: 5, inode: 77, slots: [{ ...INFO.memory.slots[0], size: '4000' }] } },
    /size in the answer to qKvm\.Info is "4000", not "0x…" of at most 64 bits/,
  ],
  [{ memory: { ...INFO.memory, private: ['0x1000'] } }, /where private memory begins in .* is missing, not text/],
  [
    { memory: { ...INFO.memory, private: [['0x1000', 4096]] } },
    /its size in the answer to qKvm\.Info is 4096, not text/,
  ],
  [{ has: { 'dirty-ring': true } }, /dirty-ring in the answer to qKvm\.Info is true, not text/],
] as const) {
  test(`qKvm.Info with ${JSON.stringify(change, (_, value) => value ?? 'nothing')} is refused in words`, () => {
    assert.throws(() => parseInfo(JSON.stringify({ ...INFO, ...change })), words);
  });
}

test('an answer to qKvm.Info that is no JSON is refused in words', () => {
  assert.throws(() => parseInfo('{"version":1'), /^Error: the answer to qKvm\.Info is not JSON: /);
  assert.throws(() => parseInfo('null'), /^Error: the answer to qKvm\.Info is null, not an object$/);
});

test('registers stand where their numbers put them', () => {
  const places = parseTargetDescription(XML);
  assert.deepEqual(places, [
    { name: 'rax', number: 0, offset: 0, bytes: 8 },
    { name: 'eflags', number: 4, offset: 8, bytes: 4 },
    { name: 'cr3', number: 5, offset: 12, bytes: 8 },
  ]);
  fc.assert(
    fc.property(fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }), (value) => {
      const bytes = new Uint8Array(20);
      bytes.set(registerBytes(places[2]!, value), 12);
      assert.equal(readRegister(bytes, places[2]!), value);
    }),
  );
  assert.throws(
    () => readRegister(new Uint8Array(12), places[2]!),
    /register cr3 would end at byte 20 of registers that have 12/,
  );
});

const reg = (attributes: string): string => `<target><feature name="f"><reg ${attributes}/></feature></target>`;
for (const [xml, words] of [
  ['', /the target description has no registers|is not XML/],
  ['<target><feature>', /^Error: the target description is not XML: /],
  ['<target></target>', /^Error: the target description has no registers$/],
  [reg('bitsize="64"'), /^Error: register 0 of the target description has no name$/],
  [reg('name="rax"'), /bitsize of register rax in the target description is "missing", not a whole number/],
  [reg('name="rax" bitsize="-8"'), /bitsize of register rax in the target description is "-8", not a whole number/],
  [reg('name="rax" bitsize="12"'), /register rax of the target description has 12 bits, not a number of bytes/],
  [reg('name="rax" bitsize="64" regnum="1e9"'), /regnum of register rax in the target description is "1e9"/],
] as const) {
  test(`the target description ${JSON.stringify(xml)} is refused in words`, () => {
    assert.throws(() => parseTargetDescription(xml), words);
  });
}

test('a target description without end is refused', async () => {
  const part = `m${'x'.repeat(1 << 20)}`;
  const stub = helperStub((packet) => (packet.startsWith('qXfer') ? frame(part) : undefined));
  const client = await connected(stub);
  await assert.rejects(
    client.readRegisters('1'),
    new RegExp(`^Error: features target\\.xml has more than the ${LONGEST} bytes that are accepted$`),
  );
  const nothing = helperStub((packet) => (packet.startsWith('qXfer') ? frame('m') : undefined));
  await assert.rejects(
    (await connected(nothing)).readRegisters('1'),
    /is answered with nothing, and that more follows/,
  );
});
