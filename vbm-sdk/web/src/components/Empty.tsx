import { EmptyState, EmptyStateActions, EmptyStateBody, EmptyStateFooter } from "@patternfly/react-core";
import type { ComponentType, ReactNode } from "react";
import { CliBox } from "./CliBox";

interface Props {
  title: string;
  icon?: ComponentType;
  /** What to do next. */
  children: ReactNode;
  action?: ReactNode;
  command?: string;
}

/** Nothing here yet, and what to do about it. */
export function Empty({ title, icon, children, action, command }: Props) {
  return (
    <EmptyState titleText={title} headingLevel="h2" {...(icon ? { icon } : {})}>
      <EmptyStateBody>{children}</EmptyStateBody>
      <EmptyStateFooter>
        {action && <EmptyStateActions>{action}</EmptyStateActions>}
        {command && <CliBox command={command} />}
      </EmptyStateFooter>
    </EmptyState>
  );
}
