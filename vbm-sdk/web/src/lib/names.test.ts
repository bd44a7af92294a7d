import { expect, it } from "vitest";
import { nameProblem } from "./names";

it("names follow the rule for DNS labels", () => {
  for (const good of ["a", "web1", "web-1", "a".repeat(63)]) expect(nameProblem(good), good).toBeUndefined();
  for (const bad of ["1web", "-a", "a-", "Web", "a_b", "a b", "虚拟机", "<script>", "it's", "a".repeat(64)])
    expect(nameProblem(bad), bad).toBeTypeOf("string");
});
