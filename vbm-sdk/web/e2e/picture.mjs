// Takes a picture of a VM's desktop as the page shows it: node picture.mjs LOGIN-LINK VM FILE. For the demo.

import { chromium } from "playwright-core";

const WITHIN_MS = 60_000;
const VIEW = { width: 1360, height: 900 };
const ARGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"];
ARGS.push("--disable-background-networking", "--disable-component-update", "--disable-sync");

const [link, vm, file] = process.argv.slice(2);
const executablePath = process.env.VBM_CHROMIUM ?? "/usr/bin/chromium";
const browser = await chromium.launch({ executablePath, args: ARGS, timeout: WITHIN_MS });
try {
  const page = await browser.newPage({ viewport: VIEW });
  page.setDefaultTimeout(WITHIN_MS);
  await page.goto(link);
  await page.goto(new URL(`/vms/${vm}/desktop`, link).href);
  await page.getByTestId("console-state").filter({ hasText: "connected" }).waitFor();
  // The first frame of the guest: something else than one colour.
  await page.waitForFunction(() => {
    const canvas = document.querySelector(".vbm-desktop canvas");
    if (!canvas?.width) return false;
    const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    return pixels.some((byte, at) => at % 4 === 0 && byte > 100);
  });
  await page.screenshot({ path: file });
} finally {
  await browser.close();
}
