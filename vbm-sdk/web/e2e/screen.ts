// Reads text off a screen's pixels, as a person does: by the shapes of its letters.
//
// A PC in text mode shows 80 columns of 9x16 cells, in the font of its VGA BIOS. QEMU's is a file: each cell of the
// picture is looked up in it.

import { readFileSync } from "node:fs";
import type { Page } from "playwright-core";

/** Where Debian's package seabios, which QEMU needs, keeps the BIOS of the emulated card. */
const VGA_BIOS = "/usr/share/seabios/vgabios-stdvga.bin";
const CELL_WIDTH = 9;
const CELL_HEIGHT = 16;
/** The ninth column of a cell belongs to no letter. */
const GLYPH_WIDTH = 8;
/** Brighter than this is ink; the guest writes grey on black. */
const INK = 60;
/** The letter A in that font, by which it is found in the file. */
const LETTER_A = [0, 0, 0x10, 0x38, 0x6c, 0xc6, 0xc6, 0xfe, 0xc6, 0xc6, 0xc6, 0xc6, 0, 0, 0, 0];

export type Font = ReadonlyMap<string, string>;

export function vgaFont(): Font {
  const rom = readFileSync(VGA_BIOS);
  const begin = rom.indexOf(Buffer.from(LETTER_A)) - "A".charCodeAt(0) * CELL_HEIGHT;
  if (begin < 0) throw new Error(`${VGA_BIOS} holds no font of 8x16 that is known here`);
  const glyphs = new Map<string, string>();
  for (let code = 0x20; code < 0x7f; code += 1) {
    const at = begin + code * CELL_HEIGHT;
    glyphs.set(rom.subarray(at, at + CELL_HEIGHT).toString("hex"), String.fromCharCode(code));
  }
  return glyphs;
}

/** A picture, one byte a pixel. */
export interface Picture {
  width: number;
  height: number;
  grey: number[];
}

/** The pixels of the desktop as the browser shows them, in the guest's own resolution. */
export async function desktop(page: Page): Promise<Picture | undefined> {
  return page.evaluate(() => {
    const canvas = document.querySelector<HTMLCanvasElement>(".vbm-desktop canvas");
    if (!canvas || canvas.width === 0) return undefined;
    const { width, height } = canvas;
    const data = canvas.getContext("2d")?.getImageData(0, 0, width, height).data;
    if (!data) return undefined;
    const grey = Array.from({ length: width * height }, (_, at) =>
      Math.max(data[at * 4]!, data[at * 4 + 1]!, data[at * 4 + 2]!),
    );
    return { width, height, grey };
  });
}

/** The lines of text in a picture. A cell that is no letter is a `?`; the cursor hides the letter beneath it. */
export function lines(picture: Picture, font: Font): string[] {
  const rows = Math.floor(picture.height / CELL_HEIGHT);
  const columns = Math.floor(picture.width / CELL_WIDTH);
  return Array.from({ length: rows }, (_, row) =>
    Array.from({ length: columns }, (_, column) => font.get(cell(picture, row, column)) ?? "?")
      .join("")
      .trimEnd(),
  );
}

function cell({ width, grey }: Picture, row: number, column: number): string {
  const bytes = Array.from({ length: CELL_HEIGHT }, (_, y) => {
    const at = (row * CELL_HEIGHT + y) * width + column * CELL_WIDTH;
    return Array.from({ length: GLYPH_WIDTH }, (_, x) => (grey[at + x]! > INK ? 0x80 >> x : 0)).reduce((a, b) => a | b);
  });
  return Buffer.from(bytes).toString("hex");
}
