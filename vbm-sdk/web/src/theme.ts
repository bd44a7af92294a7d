// Light, dark, or as the system has it; remembered by the browser.

export const THEMES = ["system", "light", "dark"] as const;
export type Theme = (typeof THEMES)[number];

const KEY = "vbm.theme";
const DARK_CLASS = "pf-v6-theme-dark";
const systemDark = window.matchMedia("(prefers-color-scheme: dark)");

export function storedTheme(): Theme {
  const stored = localStorage.getItem(KEY);
  return THEMES.find((theme) => theme === stored) ?? "system";
}

export function applyTheme(theme: Theme): void {
  localStorage.setItem(KEY, theme);
  const dark = theme === "dark" || (theme === "system" && systemDark.matches);
  document.documentElement.classList.toggle(DARK_CLASS, dark);
}

systemDark.addEventListener("change", () => applyTheme(storedTheme()));
