// The rule for names (vbm-core/src/name.rs), told while typing. Pure; the server decides.

const NAME_MAX_CHARS = 63;

/** What is wrong with a name; `undefined` when nothing is. */
export function nameProblem(text: string): string | undefined {
  if (text === "") return undefined;
  if (text.length > NAME_MAX_CHARS) return `At most ${NAME_MAX_CHARS} characters.`;
  if (!/^[a-z]/.test(text)) return "A name begins with a letter a-z.";
  if (!/^[a-z0-9-]*$/.test(text)) return "Only a-z, 0-9 and '-' are allowed.";
  if (text.endsWith("-")) return "A name does not end with '-'.";
  return undefined;
}
