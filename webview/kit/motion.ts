/** A duration for something that moves, ms: none for those who have asked, of the system or of VS Code, that nothing does. */
export function duration(ms: number): number {
  const still =
    matchMedia('(prefers-reduced-motion: reduce)').matches || document.body.classList.contains('vscode-reduce-motion');
  return still ? 0 : ms;
}
