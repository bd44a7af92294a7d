// Who asks, then the page: frame, live store, and the place of the address.

import { Bullseye, Spinner } from "@patternfly/react-core";
import { lazy, Suspense, useCallback, useEffect, useState } from "react";
import { ApiError, call } from "./api/http";
import type { Session } from "./api/types";
import { Dialogs } from "./components/Dialogs";
import { ErrorNote } from "./components/ErrorNote";
import { Toasts } from "./components/Toasts";
import { Frame } from "./Frame";
import { LiveProvider, useLive } from "./live/context";
import { useRoute } from "./navigation";
import { EventsPage } from "./pages/EventsPage";
import { FloatingIpsPage } from "./pages/FloatingIpsPage";
import { GroupsPage } from "./pages/GroupsPage";
import { ImagesPage } from "./pages/ImagesPage";
import { LostPage } from "./pages/LostPage";
import { NetworkPage } from "./pages/NetworkPage";
import { NetworksPage } from "./pages/NetworksPage";
import { NodesPage } from "./pages/NodesPage";
import { OperationsPage } from "./pages/OperationsPage";
import { SignedOut } from "./pages/SignedOut";
import { VmsPage } from "./pages/VmsPage";
import type { Route } from "./routes";

// The consoles come with it, and are large.
const VmPage = lazy(() => import("./pages/VmPage"));

const UNAUTHORISED = 401;
const ASK_AGAIN_MS = 3_000;

type Entrance =
  { at: "door" } | { at: "outside" } | { at: "inside"; session: Session } | { at: "fault"; error: unknown };

export function App() {
  const [entrance, setEntrance] = useState<Entrance>({ at: "door" });
  const ask = useCallback(async () => {
    try {
      setEntrance({ at: "inside", session: await call("get", "/v1/session") });
    } catch (error) {
      const outside = error instanceof ApiError && error.status === UNAUTHORISED;
      setEntrance(outside ? { at: "outside" } : { at: "fault", error });
    }
  }, []);
  useEffect(() => void ask(), [ask]);
  useEffect(() => {
    if (entrance.at !== "fault") return undefined;
    const timer = setTimeout(() => void ask(), ASK_AGAIN_MS);
    return () => clearTimeout(timer);
  }, [entrance, ask]);

  switch (entrance.at) {
    case "door":
      return <Waiting />;
    case "outside":
      return <SignedOut />;
    case "fault":
      return (
        <Bullseye className="vbm-alone">
          <ErrorNote error={entrance.error} />
        </Bullseye>
      );
    case "inside":
      return (
        <LiveProvider>
          <Toasts>
            <Dialogs>
              <Inside session={entrance.session} />
            </Dialogs>
          </Toasts>
        </LiveProvider>
      );
  }
}

function Waiting() {
  return (
    <Bullseye className="vbm-alone">
      <Spinner aria-label="Loading" />
    </Bullseye>
  );
}

function Inside({ session }: { session: Session }) {
  const live = useLive();
  const route = useRoute();
  if (live.phase === "signed-out") return <SignedOut />;
  return (
    <Frame session={session} route={route}>
      {live.phase === "ready" ? (
        <Suspense fallback={<Waiting />}>
          <Place route={route} />
        </Suspense>
      ) : (
        <Waiting />
      )}
    </Frame>
  );
}

function Place({ route }: { route: Route }) {
  switch (route.page) {
    case "vms":
      return <VmsPage />;
    case "vm":
      return <VmPage key={route.name} name={route.name} tab={route.tab} />;
    case "networks":
      return <NetworksPage />;
    case "network":
      return <NetworkPage name={route.name} />;
    case "groups":
      return <GroupsPage />;
    case "floating-ips":
      return <FloatingIpsPage />;
    case "images":
      return <ImagesPage />;
    case "nodes":
      return <NodesPage />;
    case "operations":
      return <OperationsPage />;
    case "events":
      return <EventsPage />;
    case "lost":
      return <LostPage path={route.path} />;
  }
}
