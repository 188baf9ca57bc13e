package main

import (
	"fmt"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
)

func newCluster() *cobra.Command {
	cmd := &cobra.Command{Use: "cluster", Short: "Look after the cluster as a whole"}
	cmd.AddCommand(newClusterInfo(), newClusterBackup(), newClusterRestore())
	return cmd
}

func newClusterInfo() *cobra.Command {
	return &cobra.Command{
		Use: "info", Short: "Show the cluster: leader, store, certificates, and what needs you", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := newClient(cmd)
			if err != nil {
				return err
			}
			resp, err := c.cluster.GetCluster(cmd.Context(), connect.NewRequest(&godwitv1.GetClusterRequest{}))
			if err != nil {
				return err
			}
			if done, err := printed(cmd, resp.Msg); done || err != nil {
				return err
			}
			return printCluster(cmd, resp.Msg)
		},
	}
}

func printCluster(cmd *cobra.Command, c *godwitv1.GetClusterResponse) error {
	leader := c.GetLeader()
	if leader == "" {
		leader = "none right now"
	}
	pairs := [][2]string{{"cluster", c.GetName()}, {"leader", leader}, {"revision", fmt.Sprint(c.GetRevision())}}
	for _, alarm := range c.GetAlarms() {
		pairs = append(pairs, [2]string{"ALARM", alarm})
	}
	for _, m := range c.GetMembers() {
		pairs = append(pairs, [2]string{"store " + m.GetName(), memberLine(m)})
	}
	for _, one := range c.GetCertificates() {
		until := "valid until " + one.GetExpires().AsTime().Format(time.DateOnly)
		if one.GetError() != "" {
			until = "unknown: " + one.GetError()
		}
		pairs = append(pairs, [2]string{"certificate " + one.GetSubject(), until})
	}
	for _, setting := range c.GetSettings() {
		pairs = append(pairs, [2]string{setting.GetName(), setting.GetValue()})
	}
	return list(cmd.OutOrStdout(), pairs)
}

func memberLine(m *godwitv1.StoreMember) string {
	if m.GetError() != "" {
		return m.GetError()
	}
	line := fmt.Sprintf("etcd %s, term %d, %s of %s, %s in use", m.GetVersion(), m.GetTerm(), size(m.GetSize()), size(m.GetQuota()), size(m.GetInUse()))
	switch {
	case m.GetLeader():
		line += ", raft leader"
	case m.GetLearner():
		line += ", learner"
	}
	if m.GetNoSpace() {
		line += ", NO SPACE"
	}
	if m.GetCorrupt() {
		line += ", CORRUPT"
	}
	return line
}
