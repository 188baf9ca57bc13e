package handover

// What is different at the target in post-copy. The vCPUs may run, on the release as ever, when the device state is here; the rest of
// the memory comes from the source meanwhile. A pull that is paused may go on. One that cannot, since the source's QEMU is gone, leaves a VM
// that stalls for ever: it is ended, and this host, which is its owner, starts it cold.

// pull is Step in post-copy: what the events of the pull do, and otherwise what they do in pre-copy.
func (t Target) pull(e TargetEvent) (Target, []TargetAction) {
	switch t.State {
	case TargetAdopted, TargetDiscarding, TargetDiscarded, TargetLost:
		return t.step(e)
	case TargetPreparing, TargetIncoming, TargetLoadedUp, TargetResuming, TargetRunning, TargetOwner:
	}
	ran := t.State == TargetRunning || t.State == TargetOwner
	//exhaustive:ignore
	switch e.Kind {
	case TargetPull:
		t.Paused = false
		if t.State == TargetPreparing || t.State == TargetIncoming {
			return t.parted(e)
		}
		return t, nil
	case TargetPullPaused:
		if t.Paused = t.Pulling; t.Paused {
			return t, []TargetAction{{Kind: RecoverPull}}
		}
		return t, nil
	case TargetTick:
		next, actions := t.step(e)
		if t.Paused {
			actions = append([]TargetAction{{Kind: RecoverPull}}, actions...)
		}
		return next, actions
	case TargetLoaded, TargetFoundRunning, TargetFoundLoaded:
		if t.Pulling {
			return t.whole(ran, "")
		}
	case TargetGone, TargetFoundGone, TargetFoundRebooted:
		if ran && t.Pulling {
			return t.whole(true, "the target's QEMU ended during the pull")
		}
	case TargetPullLost:
		return t.cutOff(e, ran)
	default:
	}
	return t.step(e)
}

// parted is the moment in which the device state is here, and the source's vCPUs have stopped for good.
func (t Target) parted(e TargetEvent) (Target, []TargetAction) {
	t.State, t.Pulling = TargetLoadedUp, true
	if t.Released {
		return t.resume(e)
	}
	return t, nil
}

// cutOff is a target whose source is lost. One that is whole does not need it, and one that never ran discards; of a cont that is under
// way QEMU's word comes first, and the source says it again.
func (t Target) cutOff(e TargetEvent, ran bool) (Target, []TargetAction) {
	switch {
	case ran && t.Pulling:
		next, told := t.whole(true, join("the source was lost during the pull", e.Why))
		return next, append([]TargetAction{{Kind: KillTarget}}, told...)
	case ran:
		return t, []TargetAction{t.has()}
	case t.State == TargetResuming || t.State == TargetLoadedUp && !t.Pulling:
		return t, nil
	}
	return t.discard("the source was lost before everything was pulled", e.Why)
}

// whole is a target that pulls no more: all is here, or what is here is lost, as why says. The source hears of it if the VM ran here.
func (t Target) whole(ran bool, why string) (Target, []TargetAction) {
	t.Pulling, t.Paused, t.Why = false, false, why
	if !ran {
		return t, nil
	}
	return t, []TargetAction{t.has()}
}
