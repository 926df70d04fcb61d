/** A file, folder or device of an initramfs. */
export interface InitramfsEntry {
  /** Path without the leading slash. */
  readonly name: string;
  /** `st_mode`: kind and permissions. */
  readonly mode: number;
  readonly data?: Uint8Array;
  readonly device?: readonly [major: number, minor: number];
}

export const FOLDER = 0o040755;
export const PROGRAM = 0o100755;
export const CHARACTER_DEVICE = 0o020600;

/** A cpio archive in the form that kernels unpack (Documentation/driver-api/early-userspace/buffer-format.rst, "newc"). */
export function initramfs(entries: readonly InitramfsEntry[]): Uint8Array {
  const encoder = new TextEncoder();
  const parts: Uint8Array[] = [];
  const padded = (bytes: Uint8Array): void => {
    parts.push(bytes, new Uint8Array(-bytes.length & 3));
  };
  [...entries, { name: 'TRAILER!!!', mode: 0 }].forEach(({ name, mode, data, device }: InitramfsEntry, index) => {
    const bytes = data ?? new Uint8Array(0);
    const path = `${name}\0`;
    // inode, mode, uid, gid, links, mtime, size, device of the file system, device, length of the name, checksum
    const fields = [
      index + 1,
      mode,
      0,
      0,
      1,
      0,
      bytes.length,
      0,
      0,
      ...(device ?? [0, 0]),
      encoder.encode(path).length,
      0,
    ];
    const header = `070701${fields.map((field) => field.toString(16).padStart(8, '0')).join('')}`;
    padded(encoder.encode(header + path));
    padded(bytes);
  });
  const archive = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    archive.set(part, at);
    at += part.length;
  }
  return archive;
}
