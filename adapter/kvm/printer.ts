/** Where a machine's words go. */
export interface KvmPrinter {
  print(text: string): void;
  /** What the guest writes to its serial port. */
  console(text: string): void;
}
