// Fields of forms: a label, a control, and what is wrong with it.

import {
  FileUpload,
  FormGroup,
  FormHelperText,
  FormSelect,
  FormSelectOption,
  HelperText,
  HelperTextItem,
  Label,
  LabelGroup,
  MenuToggle,
  NumberInput,
  Select,
  SelectList,
  SelectOption,
  TextInput,
} from "@patternfly/react-core";
import { type ReactNode, useId, useState } from "react";

interface Common {
  label: string;
  help?: ReactNode;
  problem?: string | undefined;
  required?: boolean;
}

function Field({ label, help, problem, required = false, id, children }: Common & { id: string; children: ReactNode }) {
  return (
    <FormGroup label={label} fieldId={id} isRequired={required}>
      {children}
      {(problem ?? help) && (
        <FormHelperText>
          <HelperText>
            <HelperTextItem variant={problem ? "error" : "default"}>{problem ?? help}</HelperTextItem>
          </HelperText>
        </FormHelperText>
      )}
    </FormGroup>
  );
}

interface TextProps extends Common {
  value: string;
  onChange: (value: string) => void;
  placeholder?: string;
}

export function TextField({ value, onChange, placeholder, ...common }: TextProps) {
  const id = useId();
  return (
    <Field {...common} id={id}>
      <TextInput
        id={id}
        value={value}
        onChange={(_, next) => onChange(next)}
        placeholder={placeholder ?? ""}
        validated={common.problem ? "error" : "default"}
        spellCheck={false}
        autoComplete="off"
      />
    </Field>
  );
}

interface NumberProps extends Common {
  value: number;
  onChange: (value: number) => void;
  min: number;
  max: number;
  /** What one press of a button adds or takes. */
  step?: number;
  unit?: string;
}

export function NumberField({ value, onChange, min, max, step = 1, unit, ...common }: NumberProps) {
  const id = useId();
  const set = (next: number) => onChange(Math.min(max, Math.max(min, next)));
  return (
    <Field {...common} id={id}>
      <NumberInput
        inputProps={{ id }}
        value={value}
        min={min}
        max={max}
        unit={unit && <span className="vbm-nowrap">{unit}</span>}
        inputAriaLabel={common.label}
        onMinus={() => set(value - step)}
        onPlus={() => set(value + step)}
        onChange={(event) => onChange(Number(event.currentTarget.value))}
        onBlur={() => set(Math.round(value) || min)}
      />
    </Field>
  );
}

interface ChoiceProps extends Common {
  value: string;
  onChange: (value: string) => void;
  options: { value: string; text: string; disabled?: boolean }[];
}

export function ChoiceField({ value, onChange, options, ...common }: ChoiceProps) {
  const id = useId();
  return (
    <Field {...common} id={id}>
      <FormSelect id={id} value={value} onChange={(_, next) => onChange(next)}>
        {options.map((option) => (
          <FormSelectOption
            key={option.value}
            value={option.value}
            label={option.text}
            isDisabled={option.disabled ?? false}
          />
        ))}
      </FormSelect>
    </Field>
  );
}

interface ManyProps extends Common {
  values: string[];
  onChange: (values: string[]) => void;
  options: string[];
  /** Shown while nothing is chosen. */
  none: string;
}

/** Any number of names out of a list. */
export function ManyField({ values, onChange, options, none, ...common }: ManyProps) {
  const id = useId();
  const [open, setOpen] = useState(false);
  const toggle = (value: string) =>
    onChange(values.includes(value) ? values.filter((other) => other !== value) : [...values, value]);
  return (
    <Field {...common} id={id}>
      <Select
        role="menu"
        isOpen={open}
        onOpenChange={setOpen}
        onSelect={(_, value) => toggle(String(value))}
        toggle={(ref) => (
          <MenuToggle id={id} ref={ref} isFullWidth onClick={() => setOpen(!open)} isExpanded={open}>
            {values.length === 0 ? (
              none
            ) : (
              <LabelGroup numLabels={5}>
                {values.map((value) => (
                  <Label key={value} isCompact variant="outline">
                    {value}
                  </Label>
                ))}
              </LabelGroup>
            )}
          </MenuToggle>
        )}
      >
        <SelectList>
          {options.map((option) => (
            <SelectOption key={option} value={option} hasCheckbox isSelected={values.includes(option)}>
              {option}
            </SelectOption>
          ))}
        </SelectList>
      </Select>
    </Field>
  );
}

interface FileProps extends Common {
  file: File | undefined;
  onChange: (file: File | undefined) => void;
}

export function FileField({ file, onChange, ...common }: FileProps) {
  const id = useId();
  return (
    <Field {...common} id={`${id}-filename`}>
      <FileUpload
        id={id}
        hideDefaultPreview
        filename={file?.name ?? ""}
        filenamePlaceholder="Drop a file here, or choose one"
        browseButtonText="Choose"
        browseButtonAriaDescribedby={`${id}-filename`}
        onFileInputChange={(_, chosen) => onChange(chosen)}
        onClearClick={() => onChange(undefined)}
      />
    </Field>
  );
}
