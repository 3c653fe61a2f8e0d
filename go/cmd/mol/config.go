package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"git.moleculesai.app/molecule-ai/libmol/go/mol"
	"github.com/spf13/cobra"
)

// A settingValue is a line of mol config.
type settingValue struct {
	Key   string `json:"key"`
	Value string `json:"value"`
	// From is an environment variable, the path of a file, or "default".
	From string `json:"from"`
	Env  string `json:"env"`
}

type configResult struct {
	outcome
	Settings []settingValue `json:"settings"`
}

func (a *app) configCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "config",
		Short: "Show each setting and where it comes from",
		Long: "Show each setting, its value, and where that comes from. Precedence, highest first: a flag,\n" +
			"an environment variable, the project's file (" + projectFile + " in the working directory or above),\n" +
			"the user's file ($XDG_CONFIG_HOME/molecule/mol.toml, else ~/.config/molecule/mol.toml), the\n" +
			"default. mol init writes a file. The token has no setting; set " + tokenEnv + ".",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.setEnv(cmd.Flags()); err != nil {
				return err
			}
			var values []settingValue
			for _, s := range settings {
				value := settingValue{Key: s.key, Value: os.Getenv(s.env), From: a.from[s.env], Env: s.env}
				if value.From == "" {
					value.Value, value.From = s.defaultText, "default"
				} else if value.From == contextEnv {
					value.Value = "the context " + os.Getenv(contextEnv)
				} else if value.From == buildxEnv {
					value.Value = "the buildx builder " + os.Getenv(buildxEnv)
				}
				value.Value = plain(mol.MaskTokenInString(mol.MaskTokenInURL(value.Value), os.Getenv(tokenEnv)))
				value.From = plain(value.From)
				values = append(values, value)
			}
			if a.asJSON {
				return a.printJSON(configResult{succeeded, values})
			}
			return printTable(a.stdout, "SETTING\tFROM\tVALUE", values, func(v settingValue) []string {
				return []string{v.Key, shortPath(v.From), v.Value}
			})
		},
	}
}

// shortPath writes a path below the home folder with ~.
func shortPath(path string) string {
	home, err := os.UserHomeDir()
	if err != nil {
		return path
	}
	if rest, ok := strings.CutPrefix(path, home+string(filepath.Separator)); ok {
		return filepath.Join("~", rest)
	}
	return path
}

func (a *app) initCommand() *cobra.Command {
	var project bool
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Write a configuration file with comments",
		Long: "Write the user's configuration file, or with --project the one of the project in the\n" +
			"working directory. Each setting is there as a comment, so nothing changes until you edit\n" +
			"the file. An existing file is never changed.",
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			path := userFile()
			if project {
				path = projectFile
			}
			if path == "" {
				return errors.New("no home folder was found: set XDG_CONFIG_HOME, or use --project")
			}
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				return err
			}
			file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
			if errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("%s exists already: edit it, or remove it first", path)
			}
			if err != nil {
				return err
			}
			_, err = file.WriteString(configTemplate(project))
			if err = errors.Join(err, file.Close()); err != nil {
				return fmt.Errorf("write %s: %w", path, err)
			}
			if a.asJSON {
				return a.printJSON(fileResult{succeeded, path})
			}
			return a.println(path)
		},
	}
	cmd.Flags().BoolVar(&project, "project", false, "write "+projectFile+" in the working directory")
	return cmd
}

type fileResult struct {
	outcome
	Path string `json:"path"`
}

// configTemplate is the text of a new file: every setting that it may have, as a comment.
func configTemplate(project bool) string {
	var text strings.Builder
	text.WriteString("# Settings of the command mol. A flag or an environment variable overrides them; mol config shows what is in effect.\n")
	for _, s := range settings {
		if project && s.userFileOnly {
			continue
		}
		example := s.defaultText
		switch {
		case s.kind != "":
		case strings.Contains(example, " ") || example == "none":
			example = `""`
		default:
			example = `"` + example + `"`
		}
		_, _ = fmt.Fprintf(&text, "\n# %s (%s). Default: %s.\n# %s = %s\n", strings.ReplaceAll(s.usage, "`", ""), s.env, s.defaultText, s.key, example)
	}
	return text.String()
}
