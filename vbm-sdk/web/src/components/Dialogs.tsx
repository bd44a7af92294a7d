// One dialog at a time, opened from anywhere.

import { type ReactNode, createContext, useCallback, useContext, useState } from "react";

type Draw = (close: () => void) => ReactNode;
const Context = createContext<(draw: Draw) => void>(() => undefined);

export function Dialogs({ children }: { children: ReactNode }) {
  const [draw, setDraw] = useState<Draw | undefined>();
  const open = useCallback((next: Draw) => setDraw(() => next), []);
  return (
    <Context.Provider value={open}>
      {children}
      {draw?.(() => setDraw(undefined))}
    </Context.Provider>
  );
}

/** Gives what opens a dialog; the dialog is given what closes it. */
export function useDialog(): (draw: Draw) => void {
  return useContext(Context);
}
