import {
  DescriptionList,
  DescriptionListDescription,
  DescriptionListGroup,
  DescriptionListTerm,
} from "@patternfly/react-core";
import type { ReactNode } from "react";

/** What is known of a thing: pairs of a word and its value. Empty values are left out. */
export function Facts({ facts }: { facts: [term: string, value: ReactNode][] }) {
  const known = facts.filter(([, value]) => value !== null && value !== undefined && value !== false && value !== "");
  return (
    <DescriptionList isHorizontal isCompact horizontalTermWidthModifier={{ default: "12ch" }}>
      {known.map(([term, value]) => (
        <DescriptionListGroup key={term}>
          <DescriptionListTerm>{term}</DescriptionListTerm>
          <DescriptionListDescription>{value}</DescriptionListDescription>
        </DescriptionListGroup>
      ))}
    </DescriptionList>
  );
}
