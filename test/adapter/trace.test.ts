import assert from 'node:assert/strict';
import { test } from 'node:test';
import { readRecordingFile } from '../../adapter/trace/file.ts';
import { differences } from './trace-forms.ts';

/** Text has microseconds. */
const MICROSECOND = 1000;

test('tracefs and trace-cmd report tell of a recording what its trace.dat tells', () => {
  const binary = readRecordingFile('test/trace/shadow.dat');
  assert.equal(binary.source, 'trace.dat');
  assert.deepEqual(binary.problems, []);
  for (const [file, source] of [
    ['shadow.report.txt', 'trace-cmd report'],
    ['shadow.tracefs.txt', 'tracefs text'],
  ] as const) {
    const written = readRecordingFile(`test/trace/${file}`);
    assert.equal(written.source, source);
    const { found, compared } = differences(binary, written, MICROSECOND);
    assert.deepEqual(found, []);
    assert.ok(compared > 2.5 * binary.length, `${file}: only ${compared} values of ${binary.length} events`);
    assert.deepEqual([...written.unknown], [...binary.unknown]);
    assert.deepEqual(written.problems, []);
  }
});
