// What surrounds every place: head, navigation, and how news arrives.

import {
  Alert,
  Dropdown,
  DropdownItem,
  DropdownList,
  Flex,
  Label,
  Masthead,
  MastheadBrand,
  MastheadContent,
  MastheadLogo,
  MastheadMain,
  MastheadToggle,
  MenuToggle,
  Nav,
  NavItem,
  NavList,
  Page,
  PageSection,
  PageSidebar,
  PageSidebarBody,
  PageToggleButton,
  SkipToContent,
  ToggleGroup,
  ToggleGroupItem,
  Toolbar,
  ToolbarContent,
  ToolbarGroup,
  ToolbarItem,
  Tooltip,
} from "@patternfly/react-core";
import BarsIcon from "@patternfly/react-icons/dist/esm/icons/bars-icon";
import DesktopIcon from "@patternfly/react-icons/dist/esm/icons/desktop-icon";
import MoonIcon from "@patternfly/react-icons/dist/esm/icons/moon-icon";
import SunIcon from "@patternfly/react-icons/dist/esm/icons/sun-icon";
import { type ReactNode, useState } from "react";
import { send } from "./api/http";
import type { Session } from "./api/types";
import { useTell } from "./components/Toasts";
import { useLive } from "./live/context";
import type { Feed } from "./live/store";
import { Link } from "./navigation";
import type { Route } from "./routes";
import { type Theme, applyTheme, storedTheme } from "./theme";

const MAIN = "main";
const PLACES: { to: Route; text: string; also?: Route["page"] }[] = [
  { to: { page: "vms" }, text: "Virtual machines", also: "vm" },
  { to: { page: "networks" }, text: "Networks", also: "network" },
  { to: { page: "groups" }, text: "Security groups" },
  { to: { page: "floating-ips" }, text: "Floating IPs" },
  { to: { page: "images" }, text: "Images" },
  { to: { page: "nodes" }, text: "Nodes" },
  { to: { page: "operations" }, text: "Operations" },
  { to: { page: "events" }, text: "Events" },
];

export function Frame({ session, route, children }: { session: Session; route: Route; children: ReactNode }) {
  const live = useLive();
  return (
    <Page
      masthead={<Head session={session} />}
      sidebar={<Places route={route} />}
      isManagedSidebar
      isContentFilled
      mainContainerId={MAIN}
      skipToContent={<SkipToContent href={`#${MAIN}`}>Skip to content</SkipToContent>}
    >
      {live.feed.by === "polling" && <Delayed feed={live.feed} failure={live.failure} />}
      {children}
    </Page>
  );
}

/** What is shown may be some seconds old, or has not been read since. */
function Delayed({ feed, failure }: { feed: Extract<Feed, { by: "polling" }>; failure: string | undefined }) {
  const title = failure ? "vbmd does not answer: what is shown here is old" : "Live updates are interrupted";
  return (
    <PageSection padding={{ default: "noPadding" }}>
      <Alert isInline variant="warning" title={title} data-testid="delayed">
        {failure
          ? "The page tries again every few seconds. What runs in virtual machines goes on without it."
          : `${feed.why}. The page looks every few seconds instead, and tries again.`}
      </Alert>
    </PageSection>
  );
}

function Head({ session }: { session: Session }) {
  return (
    <Masthead>
      <MastheadMain>
        <MastheadToggle>
          <PageToggleButton variant="plain" aria-label="Navigation" isHamburgerButton>
            <BarsIcon />
          </PageToggleButton>
        </MastheadToggle>
        <MastheadBrand>
          <MastheadLogo
            component={(props) => <Link {...props} to={{ page: "vms" }} aria-label="VBM, to the virtual machines" />}
          >
            <Flex
              alignItems={{ default: "alignItemsCenter" }}
              columnGap={{ default: "columnGapSm" }}
              flexWrap={{ default: "nowrap" }}
            >
              <img src="/vbm.svg" alt="" className="vbm-logo" />
              <span className="vbm-brand">VBM</span>
            </Flex>
          </MastheadLogo>
        </MastheadBrand>
      </MastheadMain>
      <MastheadContent>
        <Toolbar isFullHeight>
          <ToolbarContent alignItems="center">
            <ToolbarItem>
              <Tooltip
                content={`VBM ${session.version}, API ${session.api}. The instance is in the tags of what vbmd makes on hosts.`}
              >
                <Label isCompact variant="outline" className="vbm-head-label">
                  instance {session.instance}
                </Label>
              </Tooltip>
            </ToolbarItem>
            <ToolbarGroup align={{ default: "alignEnd" }} alignItems="center" gap={{ default: "gapMd" }}>
              <ToolbarItem>
                <FeedLabel />
              </ToolbarItem>
              <ToolbarItem>
                <ThemeSwitch />
              </ToolbarItem>
              <ToolbarItem>
                <UserMenu session={session} />
              </ToolbarItem>
            </ToolbarGroup>
          </ToolbarContent>
        </Toolbar>
      </MastheadContent>
    </Masthead>
  );
}

function FeedLabel() {
  const { feed } = useLive();
  if (feed.by === "nothing") return null;
  const live = feed.by === "watch";
  const text = live ? "Changes are shown as they happen." : `Changes are shown with delay: ${feed.why}.`;
  return (
    <Tooltip content={text}>
      <Label
        isCompact
        color={live ? "green" : "orange"}
        variant="outline"
        className="vbm-head-label"
        data-testid="feed"
      >
        {live ? "live" : "delayed"}
      </Label>
    </Tooltip>
  );
}

const THEME_ICONS: Record<Theme, ReactNode> = {
  light: <SunIcon />,
  dark: <MoonIcon />,
  system: <DesktopIcon />,
};
const THEME_LABELS: Record<Theme, string> = { light: "Light", dark: "Dark", system: "As the system has it" };

function ThemeSwitch() {
  const [theme, setTheme] = useState(storedTheme);
  const choose = (next: Theme) => {
    applyTheme(next);
    setTheme(next);
  };
  return (
    <ToggleGroup isCompact aria-label="Colours">
      {(["light", "dark", "system"] as const).map((name) => (
        <ToggleGroupItem
          key={name}
          icon={THEME_ICONS[name]}
          aria-label={THEME_LABELS[name]}
          isSelected={theme === name}
          onChange={() => choose(name)}
        />
      ))}
    </ToggleGroup>
  );
}

function UserMenu({ session }: { session: Session }) {
  const [open, setOpen] = useState(false);
  const tell = useTell();
  const logout = () =>
    send("post", "/logout").then(
      () => location.assign("/"),
      (error: unknown) => tell({ title: "Log out", error }),
    );
  return (
    <Dropdown
      isOpen={open}
      onOpenChange={setOpen}
      onSelect={() => setOpen(false)}
      popperProps={{ position: "right" }}
      toggle={(ref) => (
        <MenuToggle ref={ref} variant="plainText" onClick={() => setOpen(!open)} isExpanded={open}>
          {session.user}
        </MenuToggle>
      )}
    >
      <DropdownList>
        <DropdownItem key="licences" to="/licences.txt" target="_blank">
          Licences
        </DropdownItem>
        <DropdownItem key="logout" onClick={() => void logout()}>
          Log out
        </DropdownItem>
      </DropdownList>
    </Dropdown>
  );
}

function Places({ route }: { route: Route }) {
  return (
    <PageSidebar>
      <PageSidebarBody>
        <Nav aria-label="Places">
          <NavList>
            {PLACES.map(({ to, text, also }) => (
              <NavItem key={text} isActive={route.page === to.page || route.page === also}>
                <Link to={to}>{text}</Link>
              </NavItem>
            ))}
          </NavList>
        </Nav>
      </PageSidebarBody>
    </PageSidebar>
  );
}
