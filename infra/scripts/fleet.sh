#!/usr/bin/env bash
# Enrol and revoke who may send: a machine, a person or a group.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: fleet.sh enrol OBJECT_ID [ServicePrincipal|User|Group]
       fleet.sh revoke OBJECT_ID
       fleet.sh join OBJECT_ID       into the publishers' group
       fleet.sh leave OBJECT_ID      out of it
       fleet.sh list

OBJECT_ID is the Entra object id of a managed identity, a service principal, a user or a group.
The deployment is the current azd environment's.
TEXT
  exit 2
}

# The value of an azd output or setting; ends when the deployment does not have it.
value() {
  local found
  found=$(azd env get-value "$1" 2>/dev/null) || found=
  if [[ -z $found ]]; then
    echo "The azd environment has no $1. Run azd provision first; $2" >&2
    exit 1
  fi
  echo "$found"
}

checked() {
  if [[ ! $1 =~ ^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$ ]]; then
    echo "$1 is no object id. az ad sp show, az ad user show or az ad group show tell it." >&2
    exit 2
  fi
}

sender='Azure Service Bus Data Sender'
no_group='name a group with azd env set FERRY_PUBLISHERS_GROUP OBJECT_ID.'
no_deployment='this script reads its outputs.'

[[ $# -ge 1 ]] || usage
verb=$1
shift
case $verb in
  enrol)
    [[ $# -ge 1 && $# -le 2 ]] || usage
    checked "$1"
    kind=${2:-ServicePrincipal}
    [[ $kind =~ ^(ServicePrincipal|User|Group)$ ]] || usage
    queue=$(value FERRY_QUEUE_ID "$no_deployment")
    inbox=$(value FERRY_INBOX_ID "$no_deployment")
    role=$(value FERRY_PUBLISHER_ROLE "$no_deployment")
    az role assignment create --assignee-object-id "$1" --assignee-principal-type "$kind" \
      --role "$sender" --scope "$queue" --output none
    az role assignment create --assignee-object-id "$1" --assignee-principal-type "$kind" \
      --role "${role##*/}" --scope "$inbox" --output none
    echo "$1 may send."
    ;;
  revoke)
    [[ $# -eq 1 ]] || usage
    checked "$1"
    queue=$(value FERRY_QUEUE_ID "$no_deployment")
    inbox=$(value FERRY_INBOX_ID "$no_deployment")
    role=$(value FERRY_PUBLISHER_ROLE "$no_deployment")
    az role assignment delete --assignee "$1" --role "$sender" --scope "$queue"
    az role assignment delete --assignee "$1" --role "${role##*/}" --scope "$inbox"
    echo "$1 may no longer send by itself; a group that it belongs to still may."
    ;;
  join | leave)
    [[ $# -eq 1 ]] || usage
    checked "$1"
    group=$(value FERRY_PUBLISHERS_GROUP "$no_group")
    [[ $verb == join ]] && change=add || change=remove
    az ad group member "$change" --group "$group" --member-id "$1"
    echo "$1: $verb done."
    ;;
  list)
    [[ $# -eq 0 ]] || usage
    queue=$(value FERRY_QUEUE_ID "$no_deployment")
    az role assignment list --scope "$queue" --role "$sender" \
      --query '[].{id: principalId, type: principalType, name: principalName}' --output table
    ;;
  *) usage ;;
esac
