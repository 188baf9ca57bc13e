package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/godwit-vm/godwit/internal/driver/config"
	"github.com/godwit-vm/godwit/internal/fault"
)

func newConfig() *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "Show and check the configuration of this host"}
	cmd.AddCommand(newConfigShow(), newConfigCheck())
	return cmd
}

func newConfigShow() *cobra.Command {
	cmd := &cobra.Command{
		Use: "show", Short: "Print every setting of this host and where it comes from", Args: cobra.NoArgs,
		Long: `Show prints what "godwit run" would take for this host with the same flags and environment. Of several sources
the first counts: flag, environment, file, init (what godwit init or join were told), default. It takes the
flags of "godwit run" too.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			set, err := settings(cmd)
			if err != nil {
				return err
			}
			c, err := loadConfig(set.Data)
			if err == nil {
				set, err = set.Under(c.told())
			}
			if err != nil && !fault.Is(err, fault.NotFound) { // a machine that is no host yet has a configuration too
				return err
			}
			asJSON, err := cmd.Flags().GetBool("json")
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), set.Values())
			}
			var rows [][]string
			for _, v := range set.Values() {
				rows = append(rows, []string{v.Key, v.Text, string(v.From), v.Where})
			}
			return table(cmd.OutOrStdout(), []string{"KEY", "VALUE", "FROM", "WHERE"}, rows)
		},
	}
	settingFlags(cmd, false)
	return cmd
}

func newConfigCheck() *cobra.Command {
	cmd := &cobra.Command{
		Use: "check [FILE]", Short: "Say everything that is wrong with a configuration", Args: cobra.MaximumNArgs(1),
		Long: `Check reads the file, by default the one that "godwit run" would read, and says all that is wrong with it:
unknown keys, values that cannot be, settings that do not fit together, and folders, users, groups, bridges
and interfaces that this machine does not have. Exit code 2 if there is anything. It takes the flags of
"godwit run" too.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			in, err := settingInput(cmd)
			if err != nil {
				return err
			}
			if len(args) == 1 {
				in.File, in.Must = args[0], true
			}
			if _, err := config.Check(in); err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), "ok")
			return err
		},
	}
	settingFlags(cmd, false)
	return cmd
}
