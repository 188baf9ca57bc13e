package main

import (
	"github.com/spf13/cobra"
)

func newStore() *cobra.Command {
	cmd := &cobra.Command{Use: "store", Short: "Look into the cluster's store"}
	var data string
	dump := &cobra.Command{
		Use: "dump", Short: "Print every record of the store as JSON", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := loadConfig(data)
			if err != nil {
				return err
			}
			s, err := c.openStore(cmd.Context())
			if err != nil {
				return err
			}
			defer func() { _ = s.Close() }() // read only
			text, err := s.Dump(cmd.Context())
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(text)
			return err
		},
	}
	dump.Flags().StringVar(&data, "data", defaultData, "data folder of the host")
	cmd.AddCommand(dump)
	return cmd
}
